"""Facts of the machine: GPU, packages with the files they are imported from, and two measured ceilings."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.gpu.facts import ceilings, smi_records
from benchmarks.gpu.quick.settings import QuickSettings
from benchmarks.gpu.stage import CannotRunError, Record

_PACKAGES = (
    "numpy", "onnxruntime", "tensorrt_rtx", "cuda.core", "cuda.bindings", "torch", "diffusers", "transformers",
    "pydantic", "tokenizers", "typer", "rich", "PIL",
)  # fmt: skip


def facts(settings: QuickSettings) -> Iterator[Record]:
    """Versions and files first; then the rates of a matrix product and of a copy, where torch is."""
    yield {"fact": "python", "value": f"{platform.python_version()}, {os.cpu_count()} cores"}
    for name in _PACKAGES:
        try:
            module = import_module(name)
        except Exception as error:
            yield {"package": name, "version": None, "file": f"{type(error).__name__}: {error}"[:200]}
            continue
        version = getattr(module, "__version__", None)
        yield {"package": name, "version": version, "file": settings.shown(getattr(module, "__file__", None))}
    if shutil.which("nvidia-smi") is not None:
        for record in smi_records():
            yield {"fact": record["what"], "value": record["value"]}
    for record in ceilings(settings.device):
        yield {"fact": record["what"], "value": record["value"]}


def carried_onnxruntime(settings: QuickSettings) -> Any:
    """ONNX Runtime from the kit, with CUDA's libraries loaded: the machine's own is for CPUs.

    Raises:
        CannotRunError: another ONNX Runtime is imported, or the kit's has no CUDA provider.
    """
    import onnxruntime as ort

    if settings.device == "cpu":
        return ort
    check_origin(ort, settings.site)
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise CannotRunError(
            f"onnxruntime {ort.__version__} has no CUDA provider: the kit lacks onnxruntime-gpu"
        )
    from sd2rt.engines.onnxruntime.cuda_libraries import load_cuda_libraries

    load_cuda_libraries(ort)
    return ort


def check_origin(module: Any, site: Path) -> None:
    """Raise CannotRunError unless the module was imported from the kit."""
    file = Path(module.__file__).resolve()
    if not file.is_relative_to(site.resolve()):
        raise CannotRunError(
            f"{module.__name__} {module.__version__} was imported from {file}, not from the kit"
        )
