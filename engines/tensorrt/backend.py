"""A bundle's engines on a GPU: which of them fit it, and the parts that they make."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from sd2rt.engines.bundle.engine_entry import EngineBackend, EngineEntry
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.cuda.device import CudaDevice
from sd2rt.engines.cuda.gpu_info import sm_number
from sd2rt.engines.errors import BundleError, MissingDependencyError, Sd2rtError
from sd2rt.engines.interface import Array, Backend, Device, Engine
from sd2rt.engines.tensorrt.build_command import build_command
from sd2rt.engines.tensorrt.engine_header import HeaderReader
from sd2rt.engines.tensorrt.packages import load_module, unfit
from sd2rt.engines.tensorrt.part import TensorRtPart

_INSTALL = "pip install 'sd2rt[tensorrt]'"


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
        made = TensorRtPart(
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
        if isinstance(like, TensorRtPart):
            try:
                made.load_as(like)
            except BaseException:
                made.close()
                raise
        return made

    def close(self) -> None:
        self._device.close()


def open_tensorrt(
    bundle: Bundle,
    device: Device,
    wanted: Sequence[EngineBackend],
    *,
    needed: Sequence[PartName],
    required: bool,
    cuda_graph: bool | None,
) -> Backend | None:
    """The first of the backends of which the bundle has engines of all ``needed`` parts that fit the GPU.

    Raises:
        BundleError: none has, and one is required; else that is a warning, and None is returned.
        MissingDependencyError: one is required and not installed, or there is no such GPU.
    """
    gpu = CudaDevice(device.index)
    reasons: list[Sd2rtError] = []
    try:
        for backend in wanted:
            try:
                module = _module(backend, bundle.manifest.engines)
            except MissingDependencyError as error:
                reasons.append(error)
                continue
            fits, reason = _fitting(bundle, backend, module, gpu, needed)
            if reason is None:
                return TensorRtBackend(bundle, gpu, backend, module, fits, cuda_graph=cuda_graph)
            reasons.append(BundleError(reason))
        if required:
            raise reasons[-1]
    except BaseException:
        gpu.close()
        raise
    gpu.close()
    # Of the backends that the bundle has nothing of, nobody need hear.
    known = {entry.backend for entry in bundle.manifest.engines}
    told = [str(error) for backend, error in zip(wanted, reasons, strict=True) if backend in known]
    warnings.warn(f"ONNX Runtime is used: {'; '.join(told)}", RuntimeWarning, stacklevel=2)
    return None


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
    lean = module.__name__ == "tensorrt_lean"
    headers = HeaderReader(module, gpu.compute_capability) if backend == "tensorrt-rtx" else None
    fits: dict[PartName, list[EngineEntry]] = {}
    reasons: dict[PartName, str] = {}
    for entry in bundle.manifest.engines:
        if entry.backend == backend:
            why = unfit(entry, str(module.__version__), gpu.compute_capability)
            if why is None and lean and not entry.version_compatible:
                why = f"it takes the whole of TensorRT: {_INSTALL}"
            if why is None and lean and entry.options.refit == "identical":
                why = f"its weights are the bundle's, and the whole of TensorRT puts them in: {_INSTALL}"
            if why is None and headers is not None:
                why = headers.unfit(bundle.path / entry.file.path)
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
    command = build_command(bundle.path, backend, part, {}, bundle.manifest.latents.vae_factor)
    where = f"{gpu.name} (sm_{sm_number(gpu.compute_capability)})"
    lack = f"{bundle.path} lacks {backend} {module.__version__} engines for {where}"
    return fits, f"{lack}: {why}: run '{command}'"
