"""Open parts with the engines of a bundle that fit the GPU and the installed version."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sd2rt.engines.bundle.engine_entry import EngineBackend, EngineEntry
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.cuda.device import CudaDevice
from sd2rt.engines.errors import BundleError, MissingDependencyError, Sd2rtError
from sd2rt.engines.fallback_warning import warn_of_fallback
from sd2rt.engines.interface import Array, Backend, Device, Engine
from sd2rt.engines.tensorrt.build_command import build_command
from sd2rt.engines.tensorrt.part import TensorRtPart
from sd2rt.engines.tensorrt.selection import select_engines

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
                module, engines = select_engines(bundle.path, bundle.manifest, backend, gpu, needed)
            except (BundleError, MissingDependencyError) as error:
                reasons.append(error)
                continue
            return TensorRtBackend(bundle, gpu, backend, module, engines, cuda_graph=cuda_graph)
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
