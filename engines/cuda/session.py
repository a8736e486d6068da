"""Sessions on a GPU: buffers at fixed addresses, a captured graph, and asynchronous launches."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import numpy as np

from sd2rt.engines.bundle.schema import Part, shape_of
from sd2rt.engines.cuda.buffers import AHEAD, SMALL_BYTES, Block, CudaBuffer, SmallInput
from sd2rt.engines.cuda.device import CudaDevice, is_cuda_error
from sd2rt.engines.cuda.memory import Memory, Ring, Slot, aligned
from sd2rt.engines.errors import EngineError
from sd2rt.engines.fallback_warning import warn_of_fallback
from sd2rt.engines.interface import Array, Buffer

_LOG = logging.getLogger(__name__)


class Executable(Protocol):
    """A compiled part at fixed shapes, which reads and writes tensors at bound addresses."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes of activation memory needed."""

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Set the device addresses of the inputs and outputs, by name; once, before the first enqueue.

        Raises:
            RuntimeError: the backend refused an address; has the backend's reason.
        """

    def use_workspace(self, address: int, nbytes: int) -> None:
        """Set the activation memory to use from now on."""

    def enqueue(self, stream: int) -> None:
        """Enqueue one execution.

        Raises:
            RuntimeError: the backend failed; has the backend's reason.
        """

    def capturable(self, stream: int) -> bool:
        """True if an execution can be captured in a graph."""

    def close(self) -> None:
        """Free the device resources."""


class CudaSession:
    """Buffers and launches of an executable on a device's stream; see :class:`sd2rt.engines.interface.Session`.

    Small inputs are packed into one block, sent with one copy per launch; other inputs are copied when pushed. The
    first launch is enqueued without a graph, the second is captured, and later ones replay the graph: the
    executable's work, then the copy of each carried output to its input. After each launch the watched output is
    copied to the host.

    Args:
        executable: owned by the session from now on.
        dims: the size of each of the part's symbols.
        carry: outputs to inputs; see the protocol.
        watch: an output, or None.
        cuda_graph: True to require a graph, False to use none, None to warn and continue without one if the
            capture fails.
        label: the session's name in messages.

    Raises:
        EngineError: the device has no memory for the buffers.
    """

    def __init__(
        self,
        device: CudaDevice,
        executable: Executable,
        part: Part,
        dims: Mapping[str, int],
        carry: Mapping[str, str],
        watch: str | None,
        *,
        cuda_graph: bool | None,
        label: str,
    ) -> None:
        self._device, self._executable, self._label = device, executable, label
        self._cuda_graph: bool | None = cuda_graph
        self._graph, self._warm = None, False
        self._generation: int | None = None
        self._closed = False
        shapes = {tensor.name: shape_of(tensor, dims) for tensor in (*part.inputs, *part.outputs)}
        dtypes = {tensor.name: tensor.dtype for tensor in (*part.inputs, *part.outputs)}
        sizes = {
            name: int(np.prod(shape)) * np.dtype(dtypes[name]).itemsize for name, shape in shapes.items()
        }
        # Launches write carried inputs, so the host's block must not overwrite them.
        carried = set(carry.values())
        small = {t.name: sizes[t.name] for t in part.inputs if t.name not in carried}
        small = {name: nbytes for name, nbytes in small.items() if nbytes <= SMALL_BYTES}
        large = {name: nbytes for name, nbytes in sizes.items() if name not in small}
        offset = Block.size_of(small)
        with device.errors(f"{label} cannot be prepared"):
            # One allocation: it succeeds or fails as a whole.
            self._memory = device.allocate(offset + sum(map(aligned, large.values())), f"{label}: buffers")
            device.fill(self._memory.buffer, 0)
            self._block: Block | None = None
            if small:
                self._block = Block(device, small, self._memory.part(0, offset), f"{label}: small inputs")
            memories: dict[str, Memory] = {}
            for name, nbytes in large.items():
                memories[name] = self._memory.part(offset, nbytes)
                offset += aligned(nbytes)
            addresses = {name: memory.address for name, memory in memories.items()}
            buffers: dict[str, SmallInput | CudaBuffer] = {}
            for name, shape in shapes.items():
                if self._block is not None and name in small:
                    addresses[name] = self._block.address(name)
                    buffers[name] = SmallInput(self._block, name, shape, dtypes[name])
                elif name not in carry:
                    buffers[name] = CudaBuffer(
                        device, memories[name], shape, dtypes[name], f"{label}: {name}"
                    )
            executable.bind(addresses)
            self._carried = [
                (memories[target].buffer, memories[source].buffer) for source, target in carry.items()
            ]
            self._watch = None
            if watch is not None:
                self._watch = _Watch(device, memories[watch], shapes[watch], dtypes[watch], label)
        self._buffers = buffers
        self.buffers: Mapping[str, Buffer] = MappingProxyType(buffers)

    def launch(self) -> None:
        """Enqueue one launch. Waits for the device only if the host is ``AHEAD`` launches ahead of it.

        Raises:
            EngineError: the device reported an error, possibly of an earlier launch; the required graph cannot be
                captured; or the session is closed.
        """
        with self._device.errors(self._label):
            self._check_open()
            self._bind_workspace()
            if self._block is not None:
                self._block.send()
            if self._graph is None and self._warm and self._cuda_graph is not False:
                self._capture()
            if self._graph is None:
                # TensorRT needs one enqueue outside a capture after its shapes or memory change, as it may make
                # calls that cannot be captured. A capture runs nothing, so this launch runs once either way.
                self._enqueue()
                self._warm = True
            else:
                self._device.replay(self._graph)
            if self._watch is not None:
                self._watch.enqueue_copy()

    def watched(self, *, wait: bool) -> list[Array]:
        """See :class:`sd2rt.engines.interface.Session`; empty if no output is watched."""
        if self._watch is None:
            return []
        with self._device.errors(self._label):
            self._check_open()
            return self._watch.arrived(wait=wait)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"{self._label} is closed: open its engine again")

    def _bind_workspace(self) -> None:
        arena = self._device.arena
        if nbytes := self._executable.workspace_bytes:
            memory = arena.reserve(nbytes, self._label)
            if self._generation != arena.generation:
                self._forget_graph()
                self._executable.use_workspace(memory.address, memory.nbytes)
                self._generation = arena.generation

    def _capture(self) -> None:
        """Capture the launch as a graph; warn if that fails and no graph was required.

        Raises:
            EngineError: the capture failed and a graph was required, or the device is lost.
        """
        reason: Exception | None = None
        if self._executable.capturable(self._device.stream):
            try:
                self._graph = self._device.capture(self._enqueue)
                return
            except Exception as error:
                if not is_cuda_error(error):
                    raise
                reason = self._device.translate(error, self._label)
                # A broken capture may leave the executable in a state that a launch without a graph resets.
                self._warm = False
                if self._device.lost:
                    raise reason from error
        message = f"{self._label}: CUDA graph capture failed"
        if reason is not None:
            message += f" ({str(reason).removeprefix(f'{self._label}: ')})"
        if self._cuda_graph:
            raise EngineError(f"{message}: leave cuda_graph out") from reason
        self._cuda_graph = False
        warn_of_fallback(
            _LOG,
            f"{message}: running without a graph, which takes more host time per step",
            UserWarning,
            stacklevel=4,
        )

    def _enqueue(self) -> None:
        self._executable.enqueue(self._device.stream)
        for target, source in self._carried:
            self._device.copy(target, source)

    def _forget_graph(self) -> None:
        graph, self._graph, self._warm = self._graph, None, False
        if graph is not None:
            graph.close()

    def close(self) -> None:
        """Wait for enqueued work and free everything; the session cannot be launched afterwards."""
        if self._closed:
            return
        self._closed = True
        # After a sticky error nothing can be freed.
        with contextlib.suppress(EngineError), self._device.errors(f"{self._label} cannot be closed"):
            self._device.synchronize()
            self._forget_graph()
            self._executable.close()
            for buffer in self._buffers.values():
                if isinstance(buffer, CudaBuffer):
                    buffer.free()
            for resource in (self._block, self._watch, self._memory):
                if resource is not None:
                    resource.free()


class _Watch:
    """Copies the watched output of each launch to the host asynchronously."""

    def __init__(
        self, device: CudaDevice, source: Memory, shape: tuple[int, ...], dtype: str, label: str
    ) -> None:
        self._device, self._source, self._shape, self._dtype = device, source, shape, dtype
        self._ring = Ring(device, source.nbytes, AHEAD, f"{label}: watched output")
        self._in_flight: deque[Slot] = deque()
        self._arrived: list[Array] = []

    def enqueue_copy(self) -> None:
        """Enqueue the copy of the output that the last enqueued launch writes."""
        if len(self._in_flight) == len(self._ring):
            # The host is as far ahead as it may be.
            self._receive()
        slot = self._ring.next()
        self._device.copy(slot.buffer, self._source.buffer)
        slot.sent()
        self._in_flight.append(slot)

    def arrived(self, *, wait: bool) -> list[Array]:
        """Return the copies that have arrived since the last call; with ``wait``, all that were enqueued."""
        while self._in_flight and (wait or self._in_flight[0].done):
            self._receive()
        arrived, self._arrived = self._arrived, []
        return arrived

    def _receive(self) -> None:
        slot = self._in_flight.popleft()
        slot.wait()
        self._arrived.append(slot.array.view(self._dtype).reshape(self._shape).copy())

    def free(self) -> None:
        """Free the staging ring."""
        self._ring.free()
