"""Select the engines of a bundle that fit the GPU and the installed version, and open parts with them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sd2rt.engines.bundle.engine_entry import EngineBackend, EngineEntry
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.cuda.device import CudaDevice
from sd2rt.engines.cuda.gpu_info import sm_number
from sd2rt.engines.errors import BundleError, MissingDependencyError, Sd2rtError
from sd2rt.engines.fallback_warning import warn_of_fallback
from sd2rt.engines.install_hint import install_hint
from sd2rt.engines.interface import Array, Backend, Device, Engine
from sd2rt.engines.tensorrt.build_command import build_command
from sd2rt.engines.tensorrt.engine_header import HeaderReader
from sd2rt.engines.tensorrt.packages import load_module, mismatch_of
from sd2rt.engines.tensorrt.part import TensorRtPart

_LOG = logging.getLogger(__name__)


class TensorRtBackend:
    """Opens parts with those engines of a bundle that fit the GPU and the installed TensorRT version."""

    def __init__(
        self,
        bundle: Bundle,
        device: CudaDevice,
        backend: EngineBackend,
        module: Any,
        engines: Mapping[PartName, Sequence[EngineEntry]],
        *,
        cuda_graph: bool | None,
    ) -> None:
        self.name: str = backend
        self.precision: str = bundle.manifest.precision
        self._bundle, self._device, self._backend = bundle, device, backend
        self._module, self._engines, self._cuda_graph = module, engines, cuda_graph

    @property
    def max_batch(self) -> int | None:
        return max(profile.dims["B"][2] for entry in self._engines["denoiser"] for profile in entry.profiles)

    def open(
        self, part: PartName, weights: Mapping[str, Array] | None = None, like: Engine | None = None
    ) -> Engine:
        entry, engines = self._bundle.part(part), self._engines.get(part, ())
        pixels = self._bundle.manifest.latents.vae_factor
        if not engines:
            command = build_command(self._bundle.path, self._backend, part, {}, pixels)
            raise BundleError(
                f"{self._bundle.path} has no {self._backend} engine of its {part} that fits {self._device.name}: "
                f"run '{command}'"
            )
        opened = TensorRtPart(
            part,
            entry,
            engines,
            self._bundle,
            self._device,
            self._module,
            pixels=pixels,
            cuda_graph=self._cuda_graph,
            weights=weights,
        )
        if isinstance(like, TensorRtPart):
            try:
                opened.load_as(like)
            except BaseException:
                opened.close()
                raise
        return opened

    def close(self) -> None:
        self._device.close()


def open_tensorrt(
    bundle: Bundle,
    device: Device,
    candidates: Sequence[EngineBackend],
    *,
    needed: Sequence[PartName],
    required: bool,
    cuda_graph: bool | None,
) -> Backend | None:
    """Open the first candidate for which the bundle has fitting engines of all ``needed`` parts.

    Without one, warn and return None, or raise if ``required``.

    Raises:
        BundleError: required, and no engines fit.
        MissingDependencyError: required and not installed, or the GPU is missing.
    """
    gpu = CudaDevice(device.index)
    reasons: list[Sd2rtError] = []
    try:
        for backend in candidates:
            try:
                module = _module(backend, bundle.manifest.engines)
            except MissingDependencyError as error:
                reasons.append(error)
                continue
            engines, reason = _select_engines(bundle, backend, module, gpu, needed)
            if reason is None:
                return TensorRtBackend(bundle, gpu, backend, module, engines, cuda_graph=cuda_graph)
            reasons.append(BundleError(reason))
        if required:
            raise reasons[-1]
    except BaseException:
        gpu.close()
        raise
    gpu.close()
    # Backends without engines in the bundle are not worth a warning.
    backends = {entry.backend for entry in bundle.manifest.engines}
    relevant = [str(error) for backend, error in zip(candidates, reasons, strict=True) if backend in backends]
    warn_of_fallback(_LOG, f"using ONNX Runtime: {'; '.join(relevant)}", stacklevel=2)
    return None


def _module(backend: EngineBackend, entries: Sequence[EngineEntry]) -> Any:
    """The backend's module; TensorRT's lean runtime if only that is installed and an engine can run in it."""
    try:
        return load_module(backend)
    except MissingDependencyError:
        if backend == "tensorrt" and any(e.version_compatible for e in entries if e.backend == backend):
            return load_module(backend, portable=True)
        raise


def _select_engines(
    bundle: Bundle, backend: EngineBackend, module: Any, gpu: CudaDevice, needed: Sequence[PartName]
) -> tuple[dict[PartName, list[EngineEntry]], str | None]:
    """Select the engines that fit, by part; also the reason if a needed part has none, else None."""
    lean = module.__name__ == "tensorrt_lean"
    headers = HeaderReader(module, gpu.compute_capability) if backend == "tensorrt-rtx" else None
    engines: dict[PartName, list[EngineEntry]] = {}
    reasons: dict[PartName, str] = {}
    for entry in bundle.manifest.engines:
        if entry.backend == backend:
            reason = mismatch_of(entry, str(module.__version__), gpu.compute_capability)
            if reason is None and lean and not entry.version_compatible:
                reason = f"it needs the full TensorRT: {install_hint('tensorrt')}"
            if reason is None and lean and entry.options.refit == "identical":
                reason = (
                    "its weights come from the bundle, which only the full TensorRT can load: "
                    f"{install_hint('tensorrt')}"
                )
            if reason is None and headers is not None:
                reason = headers.mismatch_of(bundle.path / entry.file.path)
            if reason is None:
                engines.setdefault(entry.part, []).append(entry)
            else:
                reasons.setdefault(entry.part, f"{entry.file.path}: {reason}")
    missing = [part for part in needed if part not in engines]
    if not missing:
        return engines, None
    part = missing[0]
    reason = (
        f"its {part} engine does not fit ({reasons[part]})" if part in reasons else f"it has no {part} engine"
    )
    command = build_command(bundle.path, backend, part, {}, bundle.manifest.latents.vae_factor)
    gpu_label = f"{gpu.name} (sm_{sm_number(gpu.compute_capability)})"
    summary = f"{bundle.path} lacks {backend} {module.__version__} engines for {gpu_label}"
    return engines, f"{summary}: {reason}: run '{command}'"
