"""Import TensorRT, its lean runtime or TensorRT for RTX, and check if an engine fits the installed package."""

from __future__ import annotations

import importlib
import platform
import re
import sys
from typing import Any

from sd2rt.engines.bundle.engine_entry import EngineBackend, EngineEntry
from sd2rt.engines.cuda.gpu_info import sm_number
from sd2rt.engines.errors import MissingDependencyError
from sd2rt.engines.install_hint import install_hint

_MODULES: dict[tuple[EngineBackend, bool], tuple[str, str]] = {
    ("tensorrt", False): ("tensorrt", "tensorrt"),
    ("tensorrt", True): ("tensorrt_lean", "lean"),
    ("tensorrt-rtx", False): ("tensorrt_rtx", "rtx"),
    ("tensorrt-rtx", True): ("tensorrt_rtx", "rtx"),
}
"""Module and extra by backend and by ``portable``: whether the lean runtime is enough."""


DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "UINT8": "uint8", "BOOL": "bool"}
"""The manifest's name of each of the backends' data types."""


def dtype_name(dtype: Any) -> str:
    """The manifest's name of a backend's data type, or the backend's name if there is none."""
    return DTYPES.get(dtype.name, str(dtype.name))


def load_module(backend: EngineBackend, portable: bool = False) -> Any:
    """Import the Python module that runs a backend's engines; with ``portable``, TensorRT's lean runtime.

    Raises:
        MissingDependencyError: it is not installed.
    """
    name, extra = _MODULES[backend, portable]
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        # OSError: the package is installed, but a CUDA library it loads is missing.
        reason = str(error).strip().splitlines()[0]
        raise MissingDependencyError(f"{name} cannot be loaded ({reason}): {install_hint(extra)}") from None


def mismatch_of(entry: EngineEntry, version: str, compute_capability: str) -> str | None:
    """The reason that an engine does not run in this version of its backend on this GPU, or None.

    Args:
        version: the module's, such as ``11.4.0.106``.
        compute_capability: the GPU's, such as ``9.0``.
    """
    if entry.platform != this_platform():
        return f"it was built for {entry.platform}, this is {this_platform()}"
    if version != entry.version:
        return f"it was built by {entry.backend} {entry.version} and runs in that version only, this is {version}"
    targets = sorted(entry.compute_capabilities, key=_numbers)
    later = entry.hardware_compatible and _numbers(compute_capability) >= _numbers(targets[0])
    if compute_capability not in targets and not later:
        names = ", ".join(f"sm_{sm_number(capability)}" for capability in targets)
        return f"it was built for {names}, this GPU is sm_{sm_number(compute_capability)}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def this_platform() -> str:
    """Operating system and processor, which an engine depends on: ``linux-x86_64``."""
    return f"{sys.platform}-{platform.machine().lower()}"
