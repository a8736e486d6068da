"""A simulated GPU: the part of ``cuda.core`` that sd2rt uses, over host memory at real addresses.

A stream is a queue whose operations run later: when something waits for them, or at random moments of a seeded
generator. Code that relies on an order that nothing enforces reads wrong values, as on a GPU. Uninitialised memory
is NaN, freed memory is poisoned, and access to unknown addresses faults.
"""

from __future__ import annotations

import ctypes
import random
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

GARBAGE = 0xFF
"""A byte of uninitialised memory: NaN as a float, -1 as an integer."""

Operation = Callable[[], None]
Pace = Literal["lazy", "eager", "random"]


class CUDAError(Exception):
    """Has the name of cuda.core's exception."""


class FaultError(Exception):
    """Raised by an operation on the device; the driver returns it from then on."""


@dataclass(eq=False)
class Allocation:
    address: int
    nbytes: int
    pinned: bool
    backing: NDArray[np.uint8]
    alive: bool = True

    def poison(self) -> None:
        start = self.address - self.backing.ctypes.data
        self.backing[start : start + self.nbytes] = GARBAGE

    def end(self) -> None:
        self.alive = False
        self.poison()


@dataclass(eq=False)
class SimulatedGpu:
    """The state of the simulated device, with counts of the calls made.

    Args:
        pace: ``lazy`` works only when something waits, ``eager`` at once, ``random`` now and then.
        missing: raised by opening a device, to simulate a missing GPU or driver.
        core_version: version of cuda-core.
        driver: False to hide the driver from TensorRT for RTX.
        captures_to_break: number of captures that fail at their end, as if another thread had broken them.
    """

    pace: Pace = "random"
    seed: int = 0
    total_bytes: int = 1 << 30
    devices: int = 1
    capability: tuple[int, int] = (9, 0)
    missing: Exception | None = None
    core_version: str = "1.2.2"
    driver: bool = True
    counts: Counter[str] = field(default_factory=Counter)
    fault: str | None = None
    captures_to_break: int = 0
    allocations: list[Allocation] = field(default_factory=list)
    pooled_bytes: int = 0
    streams: dict[int, Stream] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.thread = threading.local()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace ``cuda.core`` and the driver bindings by the simulation."""
        monkeypatch.setitem(sys.modules, "cuda.core", self.core_module())
        monkeypatch.setitem(sys.modules, "cuda.bindings.driver", self.driver_module())
        # Forget the current devices of an earlier test.
        monkeypatch.setattr("sd2rt.engines.cuda.device._THREAD", threading.local())

    def core_module(self) -> Any:
        gpu: Any = self
        module: Any = ModuleType("cuda.core")
        module.__version__ = self.core_version
        module.StreamOptions = StreamOptions
        module.EventOptions = EventOptions
        module.Buffer = type("Buffer", (Buffer,), {"gpu": gpu})
        module.LegacyPinnedMemoryResource = lambda: LegacyPinnedMemoryResource(gpu)
        module.Device = lambda index: Device(gpu, index)
        module.system = SimpleNamespace(
            get_kernel_mode_driver_version=lambda: (580, 65, 6),
            get_user_mode_driver_version=lambda: (13, 0),
        )
        return module

    def driver_module(self) -> Any:
        module: Any = ModuleType("cuda.bindings.driver")
        module.cuMemGetInfo = lambda: (0, self.free_bytes, self.total_bytes)
        module.cuMemPoolTrimTo = self.trim_pool
        module.CUstreamCaptureStatus = CUstreamCaptureStatus
        module.cuStreamIsCapturing = lambda stream: (0, self.streams[stream].capture_status)
        module.cuStreamEndCapture = lambda stream: (0, self.streams[stream].end_capture())
        module.cuGraphDestroy = lambda graph: (0,)
        return module

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - sum(a.nbytes for a in self.allocations if a.alive and not a.pinned)

    def trim_pool(self, pool: object, keep: int) -> tuple[int]:
        assert (pool, keep) == ("the pool", 0)
        self.called("trim")
        self.pooled_bytes = 0
        return (0,)

    def end(self, allocation: Allocation) -> None:
        """Free memory to the pool, which only allocations from the pool can reuse."""
        allocation.end()
        self.pooled_bytes += allocation.nbytes

    @property
    def pinned_bytes(self) -> int:
        return sum(a.nbytes for a in self.allocations if a.alive and a.pinned)

    @property
    def waits(self) -> int:
        """Number of times that the host has waited for the device."""
        return self.counts["stream sync"] + self.counts["event wait"]

    def called(self, name: str, *, needs_context: bool = True) -> None:
        """Account for a driver call."""
        self.counts[name] += 1
        if self.fault is not None:
            raise CUDAError(f"{self.fault}: simulated")
        if needs_context:
            self.require_context()
        self.progress()

    def progress(self) -> None:
        """Let time pass: run some of the enqueued operations, depending on the pace."""
        for stream in self.streams.values():
            if self.pace == "eager":
                stream.drain()
            elif self.pace == "random":
                stream.work(self.random.choice((0, 0, 0, 1, 2, 5)))

    def require_context(self) -> None:
        """Account for a library's call, which needs a context that is current in this thread."""
        if not hasattr(self.thread, "current"):
            raise CUDAError("CUDA_ERROR_INVALID_CONTEXT: simulated: no context is current in this thread")

    def forbid_in_capture(self, *, any_thread: bool = False) -> None:
        """Account for a call that breaks every capture of this thread, or of any thread."""
        for stream in self.streams.values():
            if stream.captured is not None and (
                any_thread or stream.capturing_thread == threading.get_ident()
            ):
                stream.broken = True
                raise CUDAError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: simulated")

    def allocate(self, nbytes: int, *, pinned: bool) -> Allocation:
        if not pinned and nbytes > self.free_bytes:
            raise CUDAError("CUDA_ERROR_OUT_OF_MEMORY: simulated")
        if not pinned:
            self.pooled_bytes = max(0, self.pooled_bytes - nbytes)
        backing = np.empty(nbytes + 512, np.uint8)
        address = -(-backing.ctypes.data // 512) * 512
        made = Allocation(address, nbytes, pinned, backing)
        made.poison()
        self.allocations.append(made)
        return made

    def within(self, address: int, nbytes: int) -> Allocation | None:
        """The live allocation that contains these bytes."""
        for made in self.allocations:
            if made.alive and made.address <= address and address + nbytes <= made.address + made.nbytes:
                return made
        return None

    def reach(self, address: int, nbytes: int) -> None:
        """Access these bytes from the device."""
        if self.within(address, nbytes) is None:
            raise FaultError("CUDA_ERROR_ILLEGAL_ADDRESS")

    def load(self, address: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Read an array from device memory, as a kernel does."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.reach(address, nbytes)
        return np.frombuffer(ctypes.string_at(address, nbytes), dtype).reshape(shape)

    def store(self, address: int, array: NDArray[Any]) -> None:
        """Write an array to device memory, as a kernel does."""
        content = np.ascontiguousarray(array).tobytes()
        self.reach(address, len(content))
        ctypes.memmove(address, content, len(content))


class CUstreamCaptureStatus(IntEnum):
    """Has the names of the driver's enumeration."""

    CU_STREAM_CAPTURE_STATUS_NONE = 0
    CU_STREAM_CAPTURE_STATUS_ACTIVE = 1
    CU_STREAM_CAPTURE_STATUS_INVALIDATED = 2


@dataclass
class StreamOptions:
    nonblocking: bool = True
    priority: int | None = None


@dataclass
class EventOptions:
    timing_enabled: bool | None = False
    blocking_sync: bool | None = False
    ipc_enabled: bool | None = False


class Stream:
    def __init__(self, gpu: SimulatedGpu, options: StreamOptions) -> None:
        assert options.nonblocking
        self._gpu = gpu
        self.handle = 0x5000 + len(gpu.streams)
        gpu.streams[self.handle] = self
        self.queue: deque[Operation] = deque()
        self.captured: list[Operation] | None = None
        self.capturing_thread: int | None = None
        self.broken = False

    def enqueue(self, operation: Operation) -> None:
        if self.captured is not None:
            self.captured.append(operation)
        else:
            self.queue.append(operation)
            self._gpu.progress()

    def work(self, count: int) -> None:
        """Run up to ``count`` of the queued operations."""
        while self.queue and count > 0 and self._gpu.fault is None:
            count -= 1
            try:
                self.queue.popleft()()
            except FaultError as fault:
                self._gpu.fault = str(fault)

    def drain(self) -> None:
        self.work(len(self.queue))

    def sync(self) -> None:
        self._gpu.forbid_in_capture()
        self._gpu.called("stream sync")
        self.drain()
        if self._gpu.fault is not None:
            raise CUDAError(f"{self._gpu.fault}: simulated")

    def record(self, event: Event | None = None, options: EventOptions | None = None) -> Event:
        assert event is not None
        self._gpu.forbid_in_capture()
        self._gpu.called("record")
        event.recorded += 1
        self.enqueue(lambda number=event.recorded: event.reach(number))  # type: ignore[misc]
        return event

    @property
    def capture_status(self) -> CUstreamCaptureStatus:
        if self.captured is None:
            return CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
        if self.broken:
            return CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_INVALIDATED
        return CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE

    def begin_capture(self) -> None:
        assert self.captured is None
        self.captured, self.broken = [], False
        self.capturing_thread = threading.get_ident()

    def end_capture(self) -> int:
        """End a capture whose graph is not wanted; returns the graph's handle, 0 if it was broken."""
        assert self.captured is not None
        assert self.capturing_thread == threading.get_ident()
        self.captured = None
        return 0 if self.broken else 0x7000

    def create_graph_builder(self) -> GraphBuilder:
        return GraphBuilder(self._gpu, self)

    def close(self) -> None:
        assert not self.queue
        del self._gpu.streams[self.handle]


class Event:
    def __init__(self, gpu: SimulatedGpu) -> None:
        self._gpu = gpu
        self.recorded = self._reached = 0

    def reach(self, number: int) -> None:
        self._reached = number

    @property
    def is_done(self) -> bool:
        self._gpu.forbid_in_capture()
        self._gpu.called("poll")
        return self._reached == self.recorded

    def sync(self) -> None:
        self._gpu.forbid_in_capture()
        if self._reached != self.recorded:
            self._gpu.called("event wait")
        # Run the operations before the event on its stream, and none behind it.
        while self._reached != self.recorded and self._gpu.fault is None:
            for stream in list(self._gpu.streams.values()):
                stream.work(1)
        if self._gpu.fault is not None:
            raise CUDAError(f"{self._gpu.fault}: simulated")


class Graph:
    def __init__(self, gpu: SimulatedGpu, operations: list[Operation]) -> None:
        self._gpu, self._operations = gpu, operations
        self._closed = False

    def launch(self, stream: Stream) -> None:
        assert not self._closed, "launch of a closed graph"
        self._gpu.called("graph launch")
        for operation in self._operations:
            stream.enqueue(operation)

    def close(self) -> None:
        self._closed = True


class GraphBuilder:
    def __init__(self, gpu: SimulatedGpu, stream: Stream) -> None:
        self._gpu, self._stream = gpu, stream
        self._operations: list[Operation] = []

    def begin_building(self, mode: str | None = "relaxed") -> GraphBuilder:
        self._gpu.called("capture")
        assert mode == "thread_local"
        self._stream.begin_capture()
        return self

    def end_building(self) -> GraphBuilder:
        assert self._stream.captured is not None
        self._operations, self._stream.captured = self._stream.captured, None
        if self._gpu.captures_to_break:
            self._gpu.captures_to_break -= 1
            self._stream.broken = True
        if self._stream.broken:
            self._gpu.counts["broken capture"] += 1
            raise CUDAError("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED: simulated")
        return self

    def complete(self, options: Any = None) -> Graph:
        return Graph(self._gpu, self._operations)

    def close(self) -> None:
        if self._stream.captured is not None:
            self._gpu.counts["broken capture"] += 1
        self._stream.captured = None


class Buffer:
    gpu: SimulatedGpu

    def __init__(
        self, gpu: SimulatedGpu, address: int, size: int, owns: Allocation | None, stream: Any
    ) -> None:
        self._gpu, self._address, self._size, self._owns, self._stream = gpu, address, size, owns, stream
        self._owner: object = None

    @classmethod
    def from_handle(cls, ptr: int, size: int, mr: object = None, owner: object = None) -> Buffer:
        assert mr is None
        assert owner is not None
        made = Buffer(cls.gpu, ptr, size, None, None)
        made._owner = owner
        return made

    @property
    def handle(self) -> int:
        return self._address

    @property
    def size(self) -> int:
        return self._size

    def copy_to(self, dst: Buffer | None = None, *, stream: Stream, options: Any = None) -> Buffer:
        assert dst is not None
        gpu, source, target, size = self._gpu, self._address, dst._address, self._size
        gpu.called("copy")
        if dst._size != size:
            raise ValueError(
                f"buffer sizes mismatch between src and dst (sizes are: src={size}, dst={dst._size})"
            )
        for address in (source, target):
            # A copy of pageable memory would be synchronous.
            assert gpu.within(address, size), "neither device memory nor page-locked"
        assert source + size <= target or target + size <= source, "a copy over itself"

        def copy() -> None:
            gpu.reach(source, size)
            gpu.reach(target, size)
            ctypes.memmove(target, source, size)

        stream.enqueue(copy)
        return dst

    def fill(self, value: int, *, stream: Stream) -> None:
        self._gpu.called("fill")
        address, size = self._address, self._size

        def fill() -> None:
            self._gpu.reach(address, size)
            ctypes.memset(address, value, size)

        stream.enqueue(fill)

    def close(self, stream: Stream | None = None) -> None:
        owned, self._owns = self._owns, None
        if owned is None:
            return
        self._gpu.forbid_in_capture()
        stream = stream or self._stream
        if owned.pinned:
            stream.sync()
            owned.end()
        else:
            self._gpu.called("free")
            stream.enqueue(lambda: self._gpu.end(owned))

    def __del__(self) -> None:
        if self._owns is not None and not self._owns.pinned and self._gpu.fault is None:
            gpu, owned = self._gpu, self._owns
            self._stream.queue.append(lambda: gpu.end(owned))


class LegacyPinnedMemoryResource:
    def __init__(self, gpu: SimulatedGpu) -> None:
        self._gpu = gpu

    def allocate(self, size: int, *, stream: Any = None) -> Buffer:
        self._gpu.forbid_in_capture()
        self._gpu.called("pin")
        made = self._gpu.allocate(size, pinned=True)
        return Buffer(self._gpu, made.address, size, made, None)


class Device:
    def __init__(self, gpu: SimulatedGpu, index: int) -> None:
        if gpu.missing is not None:
            raise gpu.missing
        if index >= gpu.devices:
            raise ValueError(f"device_id must be within [0, {gpu.devices}), got {index}")
        self._gpu, self._index = gpu, index
        self.name = "Simulated GPU 1"
        self.memory_resource = SimpleNamespace(handle="the pool")
        self.compute_capability = SimpleNamespace(major=gpu.capability[0], minor=gpu.capability[1])

    def set_current(self) -> None:
        self._gpu.thread.current = self._index

    def create_stream(self, obj: Any = None, options: StreamOptions | None = None) -> Stream:
        self._gpu.called("create stream")
        assert options is not None
        return Stream(self._gpu, options)

    def create_event(self, options: EventOptions | None = None) -> Event:
        self._gpu.called("create event")
        return Event(self._gpu)

    def allocate(self, size: int, *, stream: Stream) -> Buffer:
        self._gpu.forbid_in_capture()
        self._gpu.called("allocate")
        made = self._gpu.allocate(size, pinned=False)
        return Buffer(self._gpu, made.address, size, made, stream)
