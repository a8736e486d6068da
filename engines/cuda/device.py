"""Access to one NVIDIA GPU through cuda-python's ``cuda.core``: a stream, memory, copies, graphs and errors.

``cuda.core`` is imported when a device is opened.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import re
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from sd2rt.engines.cuda.gpu_info import device_memory
from sd2rt.engines.cuda.memory import Arena, Memory, PinnedMemory
from sd2rt.engines.errors import EngineError, MissingDependencyError
from sd2rt.engines.install_hint import install_hint
from sd2rt.engines.interface import Array, Closing

STICKY = (
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_CONTAINED",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_DEINITIALIZED",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_EXTERNAL_DEVICE",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_MPS_CLIENT_TERMINATED",
    "CUDA_ERROR_MPS_RPC_FAILURE",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK",
    "CUDA_ERROR_UNKNOWN",
)
"""Errors after which every further driver call of the process fails with the same one."""

OLDEST_CUDA_CORE = 1
"""The oldest major version of cuda-core with everything that is called here."""

_NAME = re.compile(r"CUDA_ERROR_\w+")
_NO_MEMORY = re.compile(
    r"CUDA_ERROR_OUT_OF_MEMORY|out of memory|bad_alloc|OutOfMemory|Failed to allocate memory|_ALLOC_FAILED",
    re.IGNORECASE,
)
EXCLUSIVE = threading.RLock()
"""Held during a capture, and by calls that may synchronise or allocate on the whole device, such as loading a model:
in any thread of the process, such a call breaks a capture."""

# The index of the device that each thread has made current, shared by all CudaDevice objects.
_THREAD = threading.local()


class CudaDevice(Closing):
    """Own one GPU's stream, arena and staging memory, which sessions share; a context manager.

    Everything is enqueued on one non-blocking stream, in program order. Any thread may use the device, one at a time.

    Args:
        index: CUDA's index of the GPU.

    Raises:
        MissingDependencyError: cuda-python, the driver or the GPU is missing.
        EngineError: the GPU reported an error.
    """

    def __init__(self, index: int = 0) -> None:
        self._core = _cuda_core()
        self.index = index
        self._dead: str | None = None
        self._handle = self._open()
        self.name: str = self._handle.name
        capability = self._handle.compute_capability
        self.compute_capability = f"{capability.major}.{capability.minor}"
        self.driver = self._driver_version()
        with self.errors(f"{self} cannot be prepared"):
            self._stream = self._handle.create_stream(options=self._core.StreamOptions(nonblocking=True))
            self.stream = int(self._stream.handle)
            self._probe = self._handle.create_event()
        self.arena = Arena(self)
        self._staging: PinnedMemory | None = None

    def __str__(self) -> str:
        return f"cuda:{self.index}"

    def _open(self) -> Any:
        try:
            handle = self._core.Device(self.index)
            handle.set_current()
        except Exception as error:
            reason = _first_line(error)
            if _NO_MEMORY.search(reason):
                raise EngineError(
                    f"{self} has too little memory to start CUDA ({reason}): free the GPU"
                ) from error
            if isinstance(error, ValueError):
                raise MissingDependencyError(
                    f"there is no {self} ({reason}): list the GPUs with 'nvidia-smi', or use --device cpu"
                ) from error
            raise MissingDependencyError(
                f"CUDA could not start on {self} ({reason}): install NVIDIA's driver, check it with 'nvidia-smi', "
                "or use --device cpu"
            ) from error
        _THREAD.index = self.index
        return handle

    def _driver_version(self) -> str:
        """The driver's version such as ``580.65.06``, or its CUDA version if NVML is not available."""
        system = self._core.system
        for query in (system.get_kernel_mode_driver_version, system.get_user_mode_driver_version):
            with contextlib.suppress(Exception):
                major, minor, *patch = query()
                return ".".join([str(major), str(minor), *(f"{number:02}" for number in patch)])
        return "unknown"

    @property
    def lost(self) -> bool:
        """True after :meth:`close` or a sticky error: this process cannot use the device any more."""
        return self._dead is not None

    def errors(self, what: str) -> Guard:
        """A context manager that makes the device current and turns CUDA errors into EngineErrors about ``what``."""
        return Guard(self, what)

    def enter(self, what: str) -> None:
        """Make the device current in the calling thread.

        Raises:
            EngineError: the device is closed, or an earlier error has made it unusable.
        """
        if self._dead is not None:
            raise EngineError(f"{what}: {self._dead}")
        if getattr(_THREAD, "index", None) != self.index:
            self._core.Device(self.index).set_current()
            _THREAD.index = self.index

    def translate(self, error: Exception, what: str, nbytes: int | None = None) -> EngineError:
        """Translate an error of CUDA or of a library on top of it; ``nbytes`` is the size of a failed allocation.

        A sticky error is remembered, and every later call fails with it.
        """
        reason = _first_line(error)
        if _NO_MEMORY.search(reason) or isinstance(error, MemoryError):
            return EngineError(f"{what}: out of memory: {self._shortage(reason, nbytes)}")
        if sticky := self._sticky(reason) or self._sticky(self._health()):
            self._dead = (
                f"{self} reported {sticky}, and this process cannot use it any more: restart the process"
            )
            return EngineError(f"{what}: {self._dead}")
        return EngineError(f"{what}: {reason}")

    @staticmethod
    def _sticky(text: str) -> str | None:
        return next((name for name in _NAME.findall(text) if name in STICKY), None)

    def _health(self) -> str:
        """The driver's current error, or an empty string; libraries report errors in their own words."""
        try:
            self._stream.record(self._probe)
            _ = self._probe.is_done
        except Exception as error:
            return _first_line(error)
        return ""

    def _shortage(self, reason: str, nbytes: int | None) -> str:
        requested = f"({reason})" if nbytes is None else f"{shown(nbytes)} requested"
        if (memory := device_memory(self.index)) is None:
            available = "free memory unknown"
        else:
            used, total = memory
            available = f"{shown(total - used)} of {shown(total)} free"
        return f"{requested}, {available} on {self}: ask for a smaller --size or batch, or free the GPU"

    def allocate(self, nbytes: int, what: str) -> Memory:
        """Allocate device memory from the pool, in stream order; its contents are undefined.

        Raises:
            EngineError: out of memory; the message has ``what`` the memory was for, its size and the free memory.
        """
        self.enter(what)
        try:
            buffer = self._handle_here().allocate(nbytes, stream=self._stream)
        except Exception as error:
            raise self.translate(error, what, nbytes) from error
        return Memory(self, buffer, nbytes)

    def trim(self) -> None:
        """Return the pool's unused memory to the GPU, for libraries that do not allocate from the pool; waits."""
        self.enter("freeing memory")
        self.synchronize()
        # GPUs without memory pools have nothing to return.
        with contextlib.suppress(AttributeError):
            pool = self._handle_here().memory_resource.handle
            importlib.import_module("cuda.bindings.driver").cuMemPoolTrimTo(pool, 0)

    def pin(self, nbytes: int, what: str) -> PinnedMemory:
        """Allocate page-locked host memory, which the device copies from and to asynchronously.

        Raises:
            EngineError: out of memory.
        """
        self.enter(what)
        try:
            buffer = self._core.LegacyPinnedMemoryResource().allocate(nbytes)
        except Exception as error:
            raise self.translate(error, f"{what}: page-locked memory", nbytes) from error
        return PinnedMemory(self, buffer, nbytes)

    def _handle_here(self) -> Any:
        # cuda.core keeps one Device object per thread.
        return self._core.Device(self.index)

    def view(self, owner: Any, address: int, nbytes: int) -> Any:
        """A ``cuda.core`` buffer over part of another one, which it keeps alive."""
        return self._core.Buffer.from_handle(address, nbytes, owner=owner)

    def copy(self, target: Any, source: Any) -> None:
        """Enqueue a copy between two ``cuda.core`` buffers of equal size."""
        source.copy_to(target, stream=self._stream)

    def fill(self, target: Any, value: int) -> None:
        """Enqueue setting every byte of a buffer to ``value``."""
        target.fill(value, stream=self._stream)

    def free(self, buffer: Any) -> None:
        """Free memory in stream order, after everything enqueued so far."""
        buffer.close(self._stream)

    def event(self) -> Any:
        """Create an event for :meth:`record`; waiting for it sleeps instead of spinning."""
        return self._handle_here().create_event(options=self._core.EventOptions(blocking_sync=True))

    def record(self, event: Any) -> None:
        """Record the event behind everything enqueued so far."""
        self._stream.record(event)

    def synchronize(self) -> None:
        """Wait for everything enqueued so far."""
        self._stream.sync()

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """Capture what ``enqueue`` enqueues, without running it, as a graph for :meth:`replay`."""
        with undisturbed():
            builder = self._stream.create_graph_builder()
            try:
                # Lets other threads allocate during the capture.
                builder.begin_building("thread_local")
                enqueue()
                return builder.end_building().complete()
            finally:
                # The capture may have been ended by the error that is being raised.
                with contextlib.suppress(Exception):
                    builder.close()

    def end_capture(self) -> bool:
        """End a capture of the stream that another library's error has left open; false if there is none."""
        driver = importlib.import_module("cuda.bindings.driver")
        error, status = driver.cuStreamIsCapturing(self.stream)
        if error or status == driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE:
            return False
        _, graph = driver.cuStreamEndCapture(self.stream)
        # A broken capture has no graph.
        if graph is not None and int(graph):
            driver.cuGraphDestroy(graph)
        return True

    def replay(self, graph: Any) -> None:
        """Enqueue a captured graph."""
        graph.launch(self._stream)

    def fetch(self, source: Memory, target: Array) -> None:
        """Copy device memory to a contiguous host array, after everything enqueued so far; waits."""
        if self._staging is None or self._staging.nbytes < source.nbytes:
            if self._staging is not None:
                self._staging.free()
                self._staging = None
            self._staging = self.pin(source.nbytes, "staging memory for reads")
        self.copy(self._staging.piece(0, source.nbytes), source.buffer)
        self.synchronize()
        target.reshape(-1).view("u1")[:] = self._staging.array[: source.nbytes]

    def close(self) -> None:
        """Free the shared resources; sessions and engines must be closed before."""
        # After a sticky error the driver refuses to free anything.
        with contextlib.suppress(Exception):
            self.enter("closing")
            self.synchronize()
            self.arena.free()
            if self._staging is not None:
                self._staging.free()
            self._stream.close()
        self._staging = None
        self._dead = self._dead or f"{self} is closed: open it again"


class Guard:
    """See :meth:`CudaDevice.errors`; a slotted class because it is entered at every launch."""

    __slots__ = ("_device", "_what")

    def __init__(self, device: CudaDevice, what: str) -> None:
        self._device, self._what = device, what

    def __enter__(self) -> None:
        self._device.enter(self._what)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and is_cuda_error(error):
            raise self._device.translate(error, self._what) from error


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Exclude what would break a capture: loads in other threads, and garbage collection that frees GPU memory."""
    with EXCLUSIVE:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was_enabled:
                gc.enable()


def is_cuda_error(error: Exception) -> bool:
    """True for errors of CUDA and of libraries on top of it: not sd2rt's own errors, and not programming errors."""
    # cuda.core's CUDAError derives from Exception directly.
    return isinstance(error, RuntimeError | MemoryError) or type(error).__name__ == "CUDAError"


def shown(nbytes: int) -> str:
    """Format a number of bytes with a unit and exactly: ``1.50 GiB (1610612736 bytes)``."""
    scaled, unit = float(nbytes), "bytes"
    for unit in ("KiB", "MiB", "GiB", "TiB"):  # noqa: B007
        scaled /= 1024
        if scaled < 1024:
            break
    return f"{nbytes} bytes" if nbytes < 1024 else f"{scaled:.2f} {unit} ({nbytes} bytes)"


def _cuda_core() -> Any:
    install = f"{install_hint('tensorrt')}, or the extra rtx"
    try:
        core = importlib.import_module("cuda.core")
    except ImportError as error:
        raise MissingDependencyError(
            f"cuda-python is not installed ({_first_line(error)}): {install}"
        ) from None
    # cuda-python 13.0 and 13.1 do not depend on cuda-core, so any version may be installed.
    version = str(getattr(core, "__version__", "0"))
    if int(version.partition(".")[0]) < OLDEST_CUDA_CORE:
        raise MissingDependencyError(
            f"cuda-core {version} is too old, {OLDEST_CUDA_CORE}.0 or later is needed: {install}"
        )
    return core


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
