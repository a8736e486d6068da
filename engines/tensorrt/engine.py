"""The TensorRT backends: engine files of a bundle, run by TensorRT, its lean runtime or TensorRT for RTX.

They have one Python API, and the module is a parameter. TensorRT for RTX compiles its kernels when an engine is
first used: it keeps them in a cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections import deque
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.bundle.manifest import EngineEntry, Part, Tensor
from sd2rt.engines.bundle.reader import plain_file
from sd2rt.engines.cuda.device import CudaDevice
from sd2rt.engines.cuda.session import CudaSession
from sd2rt.engines.errors import BundleError, EngineError
from sd2rt.engines.interface import NO_CARRY, Array, Closing, Session, Sessions, shape_of
from sd2rt.engines.tensorrt.packages import DTYPES, unfit
from sd2rt.engines.weights.initializers import Weights

_CHUNK_BYTES = 16 << 20


class TensorRtEngine(Closing):
    """An engine file on a GPU: its weights once, and for each of its sizes an execution context.

    Args:
        part: the manifest's entry of what was compiled.
        entry: the manifest's entry of the engine.
        bundle: the folder that both are of.
        device: where to run; it is shared, and outlives the engine.
        module: the backend; see :func:`load_module`.
        pixels: for each of the latents' ``h`` and ``w``, for the command that an error names.
        cuda_graph: capture each session's launch as a CUDA graph and replay it.

    Raises:
        BundleError: the file is not what the manifest says, or does not fit the backend, the GPU or the part.
        EngineError: there is no memory for it.
    """

    def __init__(
        self,
        part: Part,
        entry: EngineEntry,
        bundle: Path,
        device: CudaDevice,
        module: Any,
        *,
        pixels: int = 8,
        cuda_graph: bool = True,
    ) -> None:
        self.part, self.entry, self.device = part, entry, device
        self._trt, self._cuda_graph = module, cuda_graph
        self._bundle, self._pixels = bundle, pixels
        self._label = f"{entry.part} on {device}"
        self._path = bundle / entry.file.path
        if reason := unfit(entry, module.__version__, device.compute_capability):
            raise BundleError(f"{self._path}: {reason}: {self._command()}")
        self._logger = _logger(module)
        content = _read_verified(bundle, entry, self._path)
        self._engine: Any = None
        self._sessions = Sessions(CudaSession.close)
        with device.errors(f"{self._path} cannot be loaded on {device}"):
            self._logger.take()
            # One that may bring code of its own for the host is refused: that is the default, and stays.
            runtime = module.Runtime(self._logger)
            engine = runtime.deserialize_cuda_engine(content)
            if engine is None:
                raise self._refusal(self._logger.take())
            # An engine keeps nothing of its runtime alive.
            self._runtime, self._engine = runtime, engine
            self._check_tensors()
            self._kernels = _KernelCache(self, module) if entry.backend == "tensorrt-rtx" else None

    def _refusal(self, reason: str) -> BundleError | RuntimeError:
        if re.search(r"out ?of ?memory|cudaError", reason, re.IGNORECASE):
            # The device's trouble, not the file's.
            return RuntimeError(reason)
        return BundleError(
            f"{self._path} is refused by {self._trt.__name__} {self._trt.__version__} ({reason}): {self._command()}"
        )

    def _command(self, dims: Mapping[str, int] = MappingProxyType({})) -> str:
        """What would build an engine that fits."""
        words = [f"sd2rt build {self._bundle} --engines-only --backend {self.entry.backend}"]
        if "h" in dims and "w" in dims:
            words.append(f"--size {dims['w'] * self._pixels}x{dims['h'] * self._pixels}")
        if "B" in dims:
            words.append(f"--batch {dims['B']}")
        return f"build it with '{' '.join(words)}'"

    def _check_tensors(self) -> None:
        """That the file's inputs and outputs are the part's, in every profile."""
        trt, engine = self._trt, self._engine
        expected = {
            **{tensor.name: (tensor, "INPUT") for tensor in self.part.inputs},
            **{tensor.name: (tensor, "OUTPUT") for tensor in self.part.outputs},
        }
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        if set(names) != set(expected):
            raise self._mismatch(f"has the tensors {', '.join(sorted(names))}", ", ".join(sorted(expected)))
        if engine.num_optimization_profiles != len(self.entry.profiles):
            raise self._mismatch(
                f"has {engine.num_optimization_profiles} profiles", f"{len(self.entry.profiles)}"
            )
        for name, (tensor, mode) in expected.items():
            found = (
                engine.get_tensor_mode(name).name,
                DTYPES.get(engine.get_tensor_dtype(name).name, "another"),
            )
            if found != (mode, tensor.dtype):
                raise self._mismatch(
                    f"has {name} as {found[1]} {found[0].lower()}", f"{tensor.dtype} {mode.lower()}"
                )
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise self._mismatch(f"wants {name} in the host's memory", "it on the device")
            shape = tuple(engine.get_tensor_shape(name))
            for index in range(len(self.entry.profiles)):
                bounds = self._bounds(tensor, index)
                fits = len(shape) == len(tensor.shape) and all(
                    size in (-1, least) and (size == -1 or least == most)
                    for size, least, most in zip(shape, bounds[0], bounds[2], strict=True)
                )
                if fits and mode == "INPUT" and -1 in shape:
                    fits = [tuple(bound) for bound in engine.get_tensor_profile_shape(name, index)] == bounds
                if not fits:
                    raise self._mismatch(
                        f"has {name} of the shape {list(shape)}, in profile {index} other than",
                        f"{list(bounds[0])} to {list(bounds[2])}",
                    )

    def _bounds(self, tensor: Tensor, index: int) -> list[tuple[int, ...]]:
        """The least, the tuned and the most shape of a tensor in a profile."""
        profile = self.entry.profiles[index]
        try:
            return [
                shape_of(tensor, {symbol: sizes[which] for symbol, sizes in profile.dims.items()})
                for which in range(3)
            ]
        except ValueError as error:
            raise self._mismatch(f"has the profile {profile.name}", str(error)) from None

    def _mismatch(self, found: str, expected: str) -> BundleError:
        return BundleError(f"{self._path} {found}, its manifest says {expected}: {self._command()}")

    def session(
        self, dims: Mapping[str, int], carry: Mapping[str, str] = NO_CARRY, watch: str | None = None
    ) -> Session:
        """The session for these sizes, made on first use; the least recently used is closed after 16.

        Raises:
            BundleError: the engine was not built for these sizes.
            EngineError: there is no memory for its buffers, or the engine is closed.
        """
        if self._engine is None:
            raise EngineError(f"{self._label} is closed: open it again")
        return self._sessions.get(self._make, dims, carry, watch)

    def _make(self, dims: Mapping[str, int], carry: Mapping[str, str], watch: str | None) -> CudaSession:
        fitting = (index for index, profile in enumerate(self.entry.profiles) if profile.takes(dims))
        index = next(fitting, None)
        if index is None:
            profiles = "; ".join(
                f"{profile.name} ({', '.join(_range(*item) for item in profile.dims.items())})"
                for profile in self.entry.profiles
            )
            asked = ", ".join(f"{symbol} {size}" for symbol, size in dims.items())
            raise BundleError(
                f"{self._path} was not built for {asked}, but for {profiles}: {self._command(dims)}"
            )
        label = f"{self.entry.part} at {dict(dims)} on {self.device}"
        with self.device.errors(f"{label} cannot be prepared"):
            executable = _Context(self, self._new_context(), index, dims)
        return CudaSession(
            self.device,
            executable,
            self.part,
            dims,
            carry,
            watch,
            cuda_graph=self._cuda_graph,
            label=label,
        )

    def _new_context(self) -> Any:
        trt, engine = self._trt, self._engine
        self._logger.take()
        config = engine.create_runtime_config()
        # Activations lie in the arena, which all contexts of the device share.
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._kernels is not None:
            self._kernels.use_in(config)
        context = engine.create_execution_context(config)
        if context is None:
            raise RuntimeError(self._logger.take())
        return context

    def refit(self, graph: Path, weights: Mapping[str, Array] | None) -> None:
        """Replace weights in the engine, in place; it must have been built to be refitted.

        Sessions are closed: what they captured may hold what was derived from the weights before.

        Args:
            graph: the part's ONNX file.
            weights: by PyTorch name, in PyTorch's orientation; None for all of the graph's own, which an engine
                that was built without any takes once.

        Raises:
            BundleError: the graph's weights cannot be read.
            EngineError: the backend refuses one of them.
        """
        self._sessions.clear()
        with self.device.errors(f"{self._path} cannot be refitted"):
            self._logger.take()
            refitter = self._trt.Refitter(self._engine, self._logger)
            kept = []
            if weights is None:
                done = self._trt.OnnxParserRefitter(refitter, self._logger).refit_from_file(str(graph))
                if not done:
                    raise RuntimeError(self._logger.take())
            else:
                own = Weights.of(self.part, graph)
                for name, value in weights.items():
                    initializer, array = own.replacement(name, value)
                    # The refitter keeps pointers.
                    kept.append(array)
                    if not refitter.set_named_weights(initializer, self._trt.Weights(array)):
                        raise RuntimeError(f"{name}: {self._logger.take()}")
            if missing := refitter.get_missing_weights():
                raise RuntimeError(
                    f"{len(missing)} weights that go with them are missing, first {missing[0]}"
                )
            if not refitter.refit_cuda_engine_async(self.device.stream):
                raise RuntimeError(self._logger.take())
            self.device.synchronize()
            kept.clear()

    def close(self) -> None:
        """Free the engine and its sessions, whoever still holds one."""
        self._sessions.clear()
        if self._engine is not None and self._kernels is not None:
            # After an error that is for good they are compiled again.
            with contextlib.suppress(EngineError), self.device.errors(f"{self._label} cannot be closed"):
                self._kernels.save()
        self._engine = self._runtime = self._kernels = None


class _Context:
    """An execution context at fixed shapes; see :class:`sd2rt.engines.cuda.session.Executable`."""

    def __init__(self, owner: TensorRtEngine, context: Any, profile: int, dims: Mapping[str, int]) -> None:
        self._logger, self._context = owner._logger, context
        part = owner.part
        self._check(
            context.set_optimization_profile_async(profile, owner.device.stream),
            f"profile {profile} is refused",
        )
        for tensor in part.inputs:
            shape = shape_of(tensor, dims)
            self._check(context.set_input_shape(tensor.name, shape), f"{tensor.name} of {shape} is refused")
        missing = context.infer_shapes()
        self._check(not missing, f"the shapes of {', '.join(missing)} are left open")
        for tensor in part.outputs:
            found, expected = tuple(context.get_tensor_shape(tensor.name)), shape_of(tensor, dims)
            self._check(found == expected, f"{tensor.name} is of {found} and not of {expected}")
        self._workspace_bytes = int(context.update_device_memory_size_for_shapes())

    @property
    def workspace_bytes(self) -> int:
        return self._workspace_bytes

    def bind(self, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            self._check(self._context.set_tensor_address(name, address), f"the address of {name} is refused")

    def use_workspace(self, address: int, nbytes: int) -> None:
        self._context.set_device_memory(address, nbytes)

    def enqueue(self, stream: int) -> None:
        self._check(self._context.execute_async_v3(stream), "it cannot be enqueued")

    def capturable(self, stream: int) -> bool:
        # TensorRT for RTX can say; TensorRT's engines can be captured as long as they are static.
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(stream))

    def close(self) -> None:
        self._context = None

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise RuntimeError(f"{what}: {self._logger.take()}")


class _KernelCache:
    """The kernels that TensorRT for RTX has compiled for an engine on this GPU, kept from process to process."""

    def __init__(self, owner: TensorRtEngine, module: Any) -> None:
        self._trt = module
        device, entry = owner.device, owner.entry
        config = owner._engine.create_runtime_config()
        self._cache = config.create_runtime_cache()
        gpu = re.sub(r"[^A-Za-z0-9]+", "-", device.name)
        self._path: Path | None = None
        self._known = b""
        # No home directory, or nothing there: they are compiled again. A cache of another driver or version is
        # refused by the backend itself.
        with contextlib.suppress(BundleError, OSError):
            self._path = cache_dir() / "kernels" / f"{entry.file.sha256}-{gpu}-{device.driver}.bin"
            known = self._path.read_bytes()
            if self._cache.deserialize(known):
                self._known = known

    def use_in(self, config: Any) -> None:
        """Let a context take its kernels from here, and leave them here."""
        trt = self._trt
        config.set_runtime_cache(self._cache)
        # The first launch compiles what fits its shapes: what a graph captures stays, so it is to be the best.
        config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        # The session captures more than the engine alone.
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED

    def save(self) -> None:
        """Write what is new; a cache that cannot be written costs time in the next process, nothing else."""
        if self._path is None:
            return
        with contextlib.suppress(OSError, RuntimeError):
            serialized = self._cache.serialize()
            if serialized is None or (content := bytes(memoryview(serialized))) == self._known:
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(content)
            temporary.replace(self._path)


def _read_verified(bundle: Path, entry: EngineEntry, path: Path) -> bytearray:
    """The file's content, once it is known to be what the manifest says: what is deserialised is what was hashed."""
    plain_file(bundle, entry.file)
    try:
        content = bytearray(entry.file.size)
        digest, read = hashlib.sha256(), 0
        view = memoryview(content)
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(view[read : read + _CHUNK_BYTES]):
                digest.update(view[read : read + count])
                read += count
            grown = bool(file.read(1))
        view.release()
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}): copy or build the bundle again"
        ) from None
    except MemoryError:
        raise EngineError(f"{path} does not fit the host's memory: it has {entry.file.size} bytes") from None
    if read != entry.file.size or grown or digest.hexdigest() != entry.file.sha256:
        raise BundleError(
            f"{path} has sha256 {digest.hexdigest()[:12]}…, its manifest says {entry.file.sha256[:12]}…: "
            "copy it again, or build it again with 'sd2rt build --engines-only'"
        )
    return content


def _range(symbol: str, sizes: tuple[int, int, int]) -> str:
    least, _, most = sizes
    return f"{symbol} {least}" if least == most else f"{symbol} {least} to {most}"


@cache
def _logger(module: Any) -> Any:
    """The one logger of a backend: it knows a single one in a process, whichever it was given first."""

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self._lines: deque[str] = deque(maxlen=8)

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                self._lines.append(" ".join(message.split()))

        def take(self) -> str:
            """The first error since the last call: those that follow come of it."""
            lines = list(self._lines)
            self._lines.clear()
            return lines[0][:400] if lines else "it gave no reason"

    return Logger()
