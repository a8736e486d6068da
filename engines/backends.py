"""What runs a bundle's parts: ONNX Runtime from its graphs, or TensorRT from what was compiled of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from sd2rt.engines.bundle import Bundle
from sd2rt.engines.cuda import CudaDevice
from sd2rt.engines.errors import BundleError, MissingDependencyError, RequestError
from sd2rt.engines.kinds import PartName
from sd2rt.engines.manifest import EngineBackend, EngineEntry, Part
from sd2rt.engines.ort import OnnxRuntimeEngine
from sd2rt.engines.session import Array, Device, Engine
from sd2rt.engines.tensorrt_module import load_module, unfit
from sd2rt.engines.tensorrt_part import TensorRtPart, build_command

BackendName = Literal["auto", "onnxruntime", "tensorrt", "tensorrt-rtx"]
_COMPILED: tuple[EngineBackend, ...] = ("tensorrt", "tensorrt-rtx")


class Backend(Protocol):
    """Opens the parts of one bundle on one device."""

    name: str

    def open(self, part: PartName, weights: Mapping[str, Array] | None = None) -> Engine:
        """The engine of a part, with these weights by PyTorch name in the place of the bundle's own.

        Raises:
            BundleError: the bundle has no such part, or nothing of it that fits.
            EngineError: it cannot be loaded on the device.
        """

    def close(self) -> None:
        """Free what the engines share; they are closed by then."""


class OnnxRuntimeBackend:
    """ONNX Runtime, from the graphs that every bundle has."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, device: Device, *, threads: int | None, cuda_graph: bool) -> None:
        self._bundle, self._device = bundle, device
        self._threads, self._cuda_graph = threads, cuda_graph

    def open(self, part: PartName, weights: Mapping[str, Array] | None = None) -> Engine:
        entry = part_of(self._bundle, part)
        return OnnxRuntimeEngine(
            entry,
            self._bundle.file(entry.onnxruntime),
            self._device,
            threads=self._threads,
            cuda_graph=self._cuda_graph,
            weights=weights,
        )

    def close(self) -> None:
        return


class TensorRtBackend:
    """TensorRT or TensorRT for RTX, from the engines of a bundle that fit the GPU and the version."""

    def __init__(
        self,
        bundle: Bundle,
        device: CudaDevice,
        backend: EngineBackend,
        module: Any,
        engines: Mapping[PartName, Sequence[EngineEntry]],
        *,
        cuda_graph: bool,
    ) -> None:
        self.name: str = backend
        self._bundle, self._device, self._backend = bundle, device, backend
        self._module, self._engines, self._cuda_graph = module, engines, cuda_graph

    def open(self, part: PartName, weights: Mapping[str, Array] | None = None) -> Engine:
        entry, engines = part_of(self._bundle, part), self._engines.get(part, ())
        pixels = self._bundle.manifest.latents.vae_factor
        if not engines:
            raise BundleError(
                f"{self._bundle.path} has no {self._backend} engine of its {part} that fits {self._device.name}: "
                f"{build_command(self._bundle.path, self._backend, {}, pixels)}"
            )
        return TensorRtPart(
            part,
            entry,
            engines,
            self._bundle.path,
            self._device,
            self._module,
            pixels=pixels,
            cuda_graph=self._cuda_graph,
            weights=weights,
        )

    def close(self) -> None:
        self._device.close()


def part_of(bundle: Bundle, part: PartName) -> Part:
    """The manifest's entry of a part. Raises BundleError where the bundle has none."""
    entry = bundle.manifest.parts.get(part)
    if entry is None:
        raise BundleError(f"{bundle.path} has no part {part}, which this takes: build the bundle again")
    return entry


def open_backend(
    bundle: Bundle,
    device: Device,
    name: BackendName = "auto",
    *,
    needed: Sequence[PartName],
    threads: int | None = None,
    cuda_graph: bool | None = None,
) -> Backend:
    """What to run a bundle with on a device.

    ``auto`` takes engines where the bundle has those of all ``needed`` parts that fit the GPU and an installed
    version, TensorRT's before TensorRT for RTX's; else ONNX Runtime, and warns where there were engines.

    Args:
        cuda_graph: capture and replay CUDA graphs; None for engines alone.

    Raises:
        RequestError: the backend does not run on the device.
        BundleError: a backend was named, and no engine of the bundle fits.
        MissingDependencyError: it is not installed, or there is no such GPU.
    """
    if device.kind == "cpu" and name in _COMPILED:
        raise RequestError(f"{name} runs on an NVIDIA GPU: give --device cuda, or leave --backend out")
    entries = bundle.manifest.engines
    if device.kind == "cuda" and (name in _COMPILED or (name == "auto" and entries)):
        gpu = CudaDevice(device.index)
        reasons: list[str] = []
        missing: MissingDependencyError | None = None
        try:
            for backend in _COMPILED:
                if name not in ("auto", backend):
                    continue
                try:
                    module = _module(backend, entries)
                except MissingDependencyError as error:
                    missing = error
                    reasons.append(str(error))
                    continue
                fits, reason = _fitting(bundle, backend, module, gpu, needed)
                if reason is None:
                    graphs = True if cuda_graph is None else cuda_graph
                    return TensorRtBackend(bundle, gpu, backend, module, fits, cuda_graph=graphs)
                reasons.append(reason)
        except BaseException:
            gpu.close()
            raise
        gpu.close()
        if name != "auto":
            raise missing or BundleError(reasons[-1])
        warnings.warn(f"ONNX Runtime is used: {reasons[-1]}", RuntimeWarning, stacklevel=2)
    return OnnxRuntimeBackend(bundle, device, threads=threads, cuda_graph=bool(cuda_graph))


def _module(backend: EngineBackend, entries: Sequence[EngineEntry]) -> Any:
    """The backend's module; the lean one where the whole is not installed and an engine can do with it."""
    try:
        return load_module(backend)
    except MissingDependencyError:
        if backend == "tensorrt" and any(e.version_compatible for e in entries if e.backend == backend):
            return load_module(backend, portable=True)
        raise


def _fitting(
    bundle: Bundle, backend: EngineBackend, module: Any, gpu: CudaDevice, needed: Sequence[PartName]
) -> tuple[dict[PartName, list[EngineEntry]], str | None]:
    """The engines that fit, by part; and why those of the needed parts do not."""
    fits: dict[PartName, list[EngineEntry]] = {}
    reasons: dict[PartName, str] = {}
    for entry in bundle.manifest.engines:
        if entry.backend == backend:
            why = unfit(entry, str(module.__version__), gpu.compute_capability)
            if why is None:
                fits.setdefault(entry.part, []).append(entry)
            else:
                reasons.setdefault(entry.part, f"{entry.file.path}: {why}")
    lacking = [part for part in needed if part not in fits]
    if not lacking:
        return fits, None
    part = lacking[0]
    why = (
        f"the one of its {part} does not fit ({reasons[part]})"
        if part in reasons
        else f"it has none of its {part}"
    )
    command = build_command(bundle.path, backend, {}, bundle.manifest.latents.vae_factor)
    where = f"{gpu.name} (sm_{gpu.compute_capability.replace('.', '')})"
    return fits, f"{bundle.path} lacks {backend} {module.__version__} engines for {where}: {why}: {command}"
