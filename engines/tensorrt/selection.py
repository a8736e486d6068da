"""Select the engines of a bundle that fit a GPU and the installed version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sd2rt.engines.bundle.engine_entry import EngineBackend, EngineEntry
from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.cuda.gpu_info import sm_number
from sd2rt.engines.errors import BundleError, MissingDependencyError
from sd2rt.engines.install_hint import install_hint
from sd2rt.engines.tensorrt.build_command import build_command
from sd2rt.engines.tensorrt.engine_header import HeaderReader
from sd2rt.engines.tensorrt.packages import load_module, mismatch_of

Engines = Mapping[PartName, Sequence[EngineEntry]]


class Gpu(Protocol):
    """Facts about a GPU that decide which engines fit."""

    @property
    def name(self) -> str: ...
    @property
    def compute_capability(self) -> str: ...


def select_engines(
    folder: Path, manifest: Manifest, backend: EngineBackend, gpu: Gpu, needed: Sequence[PartName]
) -> tuple[Any, Engines]:
    """Return the backend's module and the engines that fit, by part.

    Raises:
        MissingDependencyError: the backend is not installed.
        BundleError: a ``needed`` part has no engine that fits.
    """
    module = _module(backend, manifest.engines)
    lean = module.__name__ == "tensorrt_lean"
    headers = HeaderReader(module, gpu.compute_capability) if backend == "tensorrt-rtx" else None
    engines: dict[PartName, list[EngineEntry]] = {}
    reasons: dict[PartName, str] = {}
    for entry in manifest.engines:
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
                reason = headers.mismatch_of(folder / entry.file.path)
            if reason is None:
                engines.setdefault(entry.part, []).append(entry)
            else:
                reasons.setdefault(entry.part, f"{entry.file.path}: {reason}")
    missing = [part for part in needed if part not in engines]
    if not missing:
        return module, engines
    part = missing[0]
    reason = (
        f"its {part} engine does not fit ({reasons[part]})" if part in reasons else f"it has no {part} engine"
    )
    command = build_command(folder, backend, part, {}, manifest.latents.vae_factor)
    gpu_label = f"{gpu.name} (sm_{sm_number(gpu.compute_capability)})"
    summary = f"{folder} lacks {backend} {module.__version__} engines for {gpu_label}"
    raise BundleError(f"{summary}: {reason}: run '{command}'")


def _module(backend: EngineBackend, entries: Sequence[EngineEntry]) -> Any:
    """The backend's module; TensorRT's lean runtime if only that is installed and an engine can run in it."""
    try:
        return load_module(backend)
    except MissingDependencyError:
        if backend == "tensorrt" and any(e.version_compatible for e in entries if e.backend == backend):
            return load_module(backend, portable=True)
        raise
