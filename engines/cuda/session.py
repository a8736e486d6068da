"""Sessions on a GPU: buffers at fixed addresses, a captured graph, and launches that wait for nothing."""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import numpy as np

from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.bundle.shapes import shape_of
from sd2rt.engines.cuda.buffers import AHEAD, SMALL_BYTES, Block, CudaBuffer, SmallInput
from sd2rt.engines.cuda.device import CudaDevice, is_foreign
from sd2rt.engines.cuda.memory import Memory, Ring, Slot, aligned
from sd2rt.engines.errors import EngineError
from sd2rt.engines.interface import Array, Buffer


class Executable(Protocol):
    """A compiled part at fixed shapes, which works on whatever lies at the addresses that it is told."""

    @property
    def workspace_bytes(self) -> int:
        """What it wants for its activations."""

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Where on the device its inputs and outputs lie, by name; once, before anything is enqueued.

        Raises:
            RuntimeError: the backend's reason.
        """

    def use_workspace(self, address: int, nbytes: int) -> None:
        """Where its activations may lie from now on."""

    def enqueue(self, stream: int) -> None:
        """Enqueue its work once.

        Raises:
            RuntimeError: the backend's reason.
        """

    def capturable(self, stream: int) -> bool:
        """Whether that can be captured in a graph."""

    def close(self) -> None:
        """Free what it holds on the device."""


class CudaSession:
    """Buffers of an executable on a device's stream; see :class:`sd2rt.engines.interface.Session`.

    Small inputs lie in one block and travel in one copy a launch. The others are copied when they are pushed. The
    first launch is enqueued plainly, the second is captured, and from then on the graph is replayed: the executable's
    work, and the copy of each carried output to its input. The watched output is copied out behind it.

    Args:
        executable: it is the session's from now on.
        dims: the size of each of the part's symbols.
        carry: from outputs to inputs; see the protocol.
        watch: an output, or None.
        cuda_graph: capture and replay; None where it may go on without, and warn, if it cannot be captured.
        label: what it is called in messages.

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
        self._graphs: bool | None = cuda_graph
        self._graph, self._warm = None, False
        self._generation: int | None = None
        self._closed = False
        shapes = {tensor.name: shape_of(tensor, dims) for tensor in (*part.inputs, *part.outputs)}
        dtypes = {tensor.name: tensor.dtype for tensor in (*part.inputs, *part.outputs)}
        sizes = {
            name: int(np.prod(shape)) * np.dtype(dtypes[name]).itemsize for name, shape in shapes.items()
        }
        # What a launch changes is not the host's to say.
        carried = set(carry.values())
        small = {t.name: sizes[t.name] for t in part.inputs if t.name not in carried}
        small = {name: nbytes for name, nbytes in small.items() if nbytes <= SMALL_BYTES}
        large = {name: nbytes for name, nbytes in sizes.items() if name not in small}
        held = Block.size_of(small)
        with device.errors(f"{label} cannot be prepared"):
            # One piece of memory: it is there as a whole or not at all.
            self._memory = device.allocate(held + sum(map(aligned, large.values())), f"{label}: buffers")
            device.fill(self._memory.buffer, 0)
            self._block: Block | None = None
            if small:
                self._block = Block(device, small, self._memory.part(0, held), f"{label}: small inputs")
            places: dict[str, Memory] = {}
            for name, nbytes in large.items():
                places[name] = self._memory.part(held, nbytes)
                held += aligned(nbytes)
            addresses = {name: memory.address for name, memory in places.items()}
            buffers: dict[str, SmallInput | CudaBuffer] = {}
            for name, shape in shapes.items():
                if self._block is not None and name in small:
                    addresses[name] = self._block.address(name)
                    buffers[name] = SmallInput(self._block, name, shape, dtypes[name])
                elif name not in carry:
                    buffers[name] = CudaBuffer(device, places[name], shape, dtypes[name], f"{label}: {name}")
            executable.bind(addresses)
            self._carried = [
                (places[target].buffer, places[source].buffer) for source, target in carry.items()
            ]
            self._watch = None
            if watch is not None:
                self._watch = _Watch(device, places[watch], shapes[watch], dtypes[watch], label)
        self._buffers = buffers
        self.buffers: Mapping[str, Buffer] = MappingProxyType(buffers)

    def launch(self) -> None:
        """Enqueue once. Waits for the device only where the host is some launches ahead of it.

        Raises:
            EngineError: the device reported an error, maybe of an earlier launch, the launch cannot be captured and
                was to be, or the session is closed.
        """
        with self._device.errors(self._label):
            self._open()
            self._bind_workspace()
            if self._block is not None:
                self._block.send()
            if self._graph is None and self._warm and self._graphs is not False:
                self._capture()
            if self._graph is None:
                # TensorRT wants one plain enqueue after its shapes or its memory have changed: it may do then what
                # no capture can hold. Capturing runs nothing, so each launch is made once either way.
                self._enqueue()
                self._warm = True
            else:
                self._device.replay(self._graph)
            if self._watch is not None:
                self._watch.follow()

    def watched(self, *, wait: bool) -> list[Array]:
        """See :class:`sd2rt.engines.interface.Session`; nothing without a watched output."""
        if self._watch is None:
            return []
        with self._device.errors(self._label):
            self._open()
            return self._watch.landed(wait=wait)

    def _open(self) -> None:
        if self._closed:
            raise EngineError(f"{self._label} is closed: open its engine again")

    def _bind_workspace(self) -> None:
        arena = self._device.arena
        if wanted := self._executable.workspace_bytes:
            memory = arena.reserve(wanted, self._label)
            if self._generation != arena.generation:
                self._forget_graph()
                self._executable.use_workspace(memory.address, memory.nbytes)
                self._generation = arena.generation

    def _capture(self) -> None:
        """Capture the launch. Where that fails, it is an error or a warning, and the next one is enqueued plainly.

        Raises:
            EngineError: a graph was asked for, or the device is of no use any more.
        """
        reason: Exception | None = None
        if self._executable.capturable(self._device.stream):
            try:
                self._graph = self._device.capture(self._enqueue)
                return
            except Exception as error:
                if not is_foreign(error):
                    raise
                reason = self._device.translate(error, self._label)
                # What a broken capture has left of the executable is set right by a plain launch.
                self._warm = False
                if self._device.lost:
                    raise reason from error
        what = f"{self._label} cannot be captured as a CUDA graph"
        if reason is not None:
            what += f" ({str(reason).removeprefix(f'{self._label}: ')})"
        if self._graphs:
            raise EngineError(f"{what}: leave cuda_graph out") from reason
        self._graphs = False
        warnings.warn(f"{what}: it runs without one, and each step costs the host more time", stacklevel=4)

    def _enqueue(self) -> None:
        self._executable.enqueue(self._device.stream)
        for target, source in self._carried:
            self._device.copy(target, source)

    def _forget_graph(self) -> None:
        graph, self._graph, self._warm = self._graph, None, False
        if graph is not None:
            graph.close()

    def close(self) -> None:
        """Free everything; waits for what is enqueued. It cannot be launched afterwards."""
        if self._closed:
            return
        self._closed = True
        # After an error that is for good nothing can be freed, and the process ends.
        with contextlib.suppress(EngineError), self._device.errors(f"{self._label} cannot be closed"):
            self._device.synchronize()
            self._forget_graph()
            self._executable.close()
            for buffer in self._buffers.values():
                if isinstance(buffer, CudaBuffer):
                    buffer.free()
            for holder in (self._block, self._watch, self._memory):
                if holder is not None:
                    holder.free()


class _Watch:
    """Copies of a small output on their way to the host, one for each launch."""

    def __init__(
        self, device: CudaDevice, source: Memory, shape: tuple[int, ...], dtype: str, label: str
    ) -> None:
        self._device, self._source, self._shape, self._dtype = device, source, shape, dtype
        self._ring = Ring(device, source.nbytes, AHEAD, f"{label}: watched output")
        self._flying: deque[Slot] = deque()
        self._landed: list[Array] = []

    def follow(self) -> None:
        """Enqueue the copy of what the launch just enqueued leaves."""
        if len(self._flying) == len(self._ring):
            # The host is as far ahead as it may be.
            self._land()
        slot = self._ring.next()
        self._device.copy(slot.buffer, self._source.buffer)
        slot.sent()
        self._flying.append(slot)

    def landed(self, *, wait: bool) -> list[Array]:
        """What has arrived since the last call; all that was sent, where ``wait``."""
        while self._flying and (wait or self._flying[0].done):
            self._land()
        landed, self._landed = self._landed, []
        return landed

    def _land(self) -> None:
        slot = self._flying.popleft()
        slot.wait()
        self._landed.append(slot.array.view(self._dtype).reshape(self._shape).copy())

    def free(self) -> None:
        """Give the ring back."""
        self._ring.free()
