"""Verify, load and run one engine file of a bundle with TensorRT, its lean runtime or TensorRT for RTX.

The three share one Python API, and the module is a parameter.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sd2rt.engines.bundle.engine_entry import EngineEntry, Profile
from sd2rt.engines.bundle.open_files import plain_file
from sd2rt.engines.bundle.schema import Part, Tensor
from sd2rt.engines.cuda.device import CudaDevice
from sd2rt.engines.cuda.session import CudaSession
from sd2rt.engines.errors import BundleError, EngineError
from sd2rt.engines.interface import NO_CARRY, Array, Closing, Session, Sessions
from sd2rt.engines.tensorrt.allocation import allocate, out_of_memory
from sd2rt.engines.tensorrt.build_command import build_command
from sd2rt.engines.tensorrt.context import TensorRtContext
from sd2rt.engines.tensorrt.kernel_cache import KernelCache
from sd2rt.engines.tensorrt.packages import dtype_name, mismatch_of
from sd2rt.engines.tensorrt.profile_shapes import ShapeRange, profile_shapes
from sd2rt.engines.tensorrt.trt_log import shared_log
from sd2rt.engines.weights.initializers import Weights

_CHUNK_BYTES = 16 << 20


class TensorRtEngine(Closing):
    """An engine file loaded on a GPU, with one execution context per session.

    Args:
        part: the manifest entry of the compiled part.
        entry: the manifest entry of the engine.
        bundle: the folder of the bundle.
        device: the device to run on; shared, must outlive the engine.
        module: the backend; see :func:`sd2rt.engines.tensorrt.packages.load_module`.
        pixels: image pixels per latent row or column, for the build command in error messages.
        cuda_graph: capture and replay CUDA graphs; see :class:`sd2rt.engines.cuda.session.CudaSession`.

    Raises:
        BundleError: the file differs from the manifest, or does not fit the backend, the GPU or the part.
        EngineError: the GPU has too little memory.
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
        cuda_graph: bool | None = None,
    ) -> None:
        self.part, self.entry, self.device = part, entry, device
        self._trt, self._cuda_graph = module, cuda_graph
        self._bundle, self._pixels = bundle, pixels
        self._label = f"{entry.part} on {device}"
        self._path = bundle / entry.file.path
        if reason := mismatch_of(entry, module.__version__, device.compute_capability):
            raise BundleError(f"{self._path}: {reason}: {self._remedy()}")
        self._log = shared_log(module)
        content = _read_verified(bundle, entry, self._path)
        self._engine: Any = None
        self._sessions = Sessions(CudaSession.close)
        with device.errors(f"{self._path} cannot be loaded on {device}"):
            # By default the runtime refuses engines that contain host code. Keep it so.
            runtime = module.Runtime(self._log)
            engine, reason = allocate(device, self._log, lambda: runtime.deserialize_cuda_engine(content))
            if engine is None:
                raise self._refusal(reason)
            # An engine does not keep its runtime alive.
            self._runtime, self._engine = runtime, engine
            self._check_tensors()
            self._kernels: KernelCache | None = None
            if entry.backend == "tensorrt-rtx":
                self._kernels = KernelCache(module, engine, entry.file.sha256, device)

    def _refusal(self, reason: str) -> BundleError | RuntimeError:
        if out_of_memory(reason) or "cudaError" in reason:
            # A fault of the device, not of the file.
            return RuntimeError(reason)
        return BundleError(
            f"{self._path} was refused by {self._trt.__name__} {self._trt.__version__} ({reason}): {self._remedy()}"
        )

    def _remedy(self, dims: Mapping[str, int] = MappingProxyType({})) -> str:
        """A hint with the command that builds a fitting engine."""
        command = build_command(self._bundle, self.entry.backend, self.entry.part, dims, self._pixels)
        return f"build it with '{command}'"

    def _check_tensors(self) -> None:
        """Compare the engine's inputs and outputs with the part's, in every profile.

        Raises:
            BundleError: they differ.
        """
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
            engine_mode = engine.get_tensor_mode(name).name
            engine_dtype = dtype_name(engine.get_tensor_dtype(name))
            if (engine_mode, engine_dtype) != (mode, tensor.dtype):
                raise self._mismatch(
                    f"has {name} as {engine_dtype} {engine_mode.lower()}", f"{tensor.dtype} {mode.lower()}"
                )
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise self._mismatch(f"has {name} in host memory", "device memory")
            shape = tuple(engine.get_tensor_shape(name))
            for index, profile in enumerate(self.entry.profiles):
                bounds = self._bounds(tensor, profile)
                fits = len(shape) == len(tensor.shape) and all(
                    size in (-1, least) and (size == -1 or least == most)
                    for size, least, most in zip(shape, bounds[0], bounds[2], strict=True)
                )
                if fits and mode == "INPUT" and -1 in shape:
                    fits = tuple(map(tuple, engine.get_tensor_profile_shape(name, index))) == bounds
                if not fits:
                    raise self._mismatch(
                        f"has {name} with the shape {list(shape)} and a range that differs in profile {index}",
                        f"{list(bounds[0])} to {list(bounds[2])}",
                    )

    def _bounds(self, tensor: Tensor, profile: Profile) -> ShapeRange:
        try:
            return profile_shapes(tensor, profile)
        except ValueError as error:
            raise self._mismatch(f"has the profile {profile.name}", str(error)) from None

    def _mismatch(self, difference: str, expected: str) -> BundleError:
        return BundleError(f"{self._path} {difference}, its manifest says {expected}: {self._remedy()}")

    def session(
        self, dims: Mapping[str, int], carry: Mapping[str, str] = NO_CARRY, watch: str | None = None
    ) -> Session:
        """Return the session for these sizes, created on first use; 16 are kept, by least recent use.

        Raises:
            BundleError: the engine was not built for these sizes.
            EngineError: the GPU has too little memory for its buffers, or the engine is closed.
        """
        if self._engine is None:
            raise EngineError(f"{self._label} is closed: open it again")
        return self._sessions.get(self._create_session, dims, carry, watch)

    def takes(self, dims: Mapping[str, int]) -> bool:
        """Return whether the engine was built for these sizes."""
        return any(profile.takes(dims) for profile in self.entry.profiles)

    def keep_sessions(self) -> None:
        """See :class:`sd2rt.engines.interface.Engine`."""
        self._sessions.keep()

    def _create_session(
        self, dims: Mapping[str, int], carry: Mapping[str, str], watch: str | None
    ) -> CudaSession:
        fitting = (index for index, profile in enumerate(self.entry.profiles) if profile.takes(dims))
        index = next(fitting, None)
        if index is None:
            profiles = "; ".join(
                f"{profile.name} ({', '.join(_range(*item) for item in profile.dims.items())})"
                for profile in self.entry.profiles
            )
            sizes = ", ".join(f"{symbol} {size}" for symbol, size in dims.items())
            raise BundleError(
                f"{self._path} was not built for {sizes}, but for {profiles}: {self._remedy(dims)}"
            )
        label = f"{self.entry.part} at {dict(dims)} on {self.device}"
        with self.device.errors(f"{label} cannot be prepared"):
            executable = TensorRtContext(
                self._trt,
                self._engine,
                self.part,
                self._log,
                self._kernels,
                profile=index,
                dims=dims,
                device=self.device,
            )
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

    def refit(self, graph: Path, weights: Mapping[str, Array] | None) -> None:
        """Replace weights of a refittable engine in place.

        Closes all sessions, as their captured graphs may depend on the previous weights.

        Args:
            graph: the part's ONNX file.
            weights: by PyTorch name, in PyTorch's orientation; None to load all of the graph's weights into an
                engine that was built without them.

        Raises:
            BundleError: the graph's weights cannot be read.
            EngineError: the backend refused a weight.
        """
        self._sessions.clear()
        with self.device.errors(f"{self._path} cannot be refitted"):
            self._log.take_error()
            refitter = self._trt.Refitter(self._engine, self._log)
            held = []
            if weights is None:
                parser = self._trt.OnnxParserRefitter(refitter, self._log)
                if not parser.refit_from_file(str(graph)):
                    raise RuntimeError(self._log.take_error())
            else:
                part_weights = Weights.of(self.part, graph)
                for name, value in weights.items():
                    initializer, array = part_weights.replacement(name, value)
                    # The refitter keeps pointers to the arrays.
                    held.append(array)
                    if not refitter.set_named_weights(initializer, self._trt.Weights(array)):
                        raise RuntimeError(f"{name}: {self._log.take_error()}")
            if missing := refitter.get_missing_weights():
                raise RuntimeError(
                    f"{len(missing)} weights that must be replaced together are missing, first {missing[0]}"
                )
            if not refitter.refit_cuda_engine_async(self.device.stream):
                raise RuntimeError(self._log.take_error())
            self.device.synchronize()
            held.clear()

    def close(self) -> None:
        """Free the engine and all its sessions."""
        self._sessions.clear()
        if self._engine is not None and self._kernels is not None:
            # After a sticky error the kernels cannot be saved; the next process compiles them again.
            with contextlib.suppress(EngineError), self.device.errors(f"{self._label} cannot be closed"):
                self._kernels.save()
        self._engine = self._runtime = self._kernels = None


def _read_verified(bundle: Path, entry: EngineEntry, path: Path) -> bytearray:
    """Read an engine file and check it against the manifest; the checked bytes are the ones deserialised."""
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
