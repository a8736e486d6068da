"""TensorRT and TensorRT for RTX: one Python API in two packages, and a lean one that runs only."""

from __future__ import annotations

import importlib
import platform
import re
import sys
from typing import Any

from sd2rt.engines.bundle.engine_entry import EngineBackend, EngineEntry
from sd2rt.engines.cuda.gpu_info import sm_number
from sd2rt.engines.errors import MissingDependencyError

_MODULES: dict[tuple[EngineBackend, bool], tuple[str, str]] = {
    ("tensorrt", False): ("tensorrt", "tensorrt"),
    ("tensorrt", True): ("tensorrt_lean", "lean"),
    ("tensorrt-rtx", False): ("tensorrt_rtx", "rtx"),
    ("tensorrt-rtx", True): ("tensorrt_rtx", "rtx"),
}
"""By backend, and whether the engine runs in other versions: the module that runs it, and the extra it comes with."""


DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "UINT8": "uint8", "BOOL": "bool"}
"""The backends' types, by their names, as a manifest calls them."""


def dtype_name(dtype: Any) -> str:
    """A backend's type as a manifest calls it, and by its own name where a manifest has none."""
    return DTYPES.get(dtype.name, str(dtype.name))


def load_module(backend: EngineBackend, portable: bool = False) -> Any:
    """The Python module that runs a backend's engines; ``portable`` for the lean runtime.

    Raises:
        MissingDependencyError: it is not installed.
    """
    name, extra = _MODULES[backend, portable]
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        # OSError: the package is there, and a library of CUDA that it loads is not.
        reason = str(error).strip().splitlines()[0]
        raise MissingDependencyError(
            f"{name} cannot be loaded ({reason}): pip install 'sd2rt[{extra}]'"
        ) from None


def unfit(entry: EngineEntry, version: str, compute_capability: str) -> str | None:
    """Why an engine does not run in this version of its backend on this GPU, None where it does.

    Args:
        version: of the module, such as ``11.4.0.106``.
        compute_capability: of the GPU, such as ``9.0``.
    """
    if entry.platform != this_platform():
        return f"it was built for {entry.platform}, this is {this_platform()}"
    if version != entry.version:
        return f"it was built by {entry.backend} {entry.version}, and runs in no other: this is {version}"
    built = sorted(entry.compute_capabilities, key=_numbers)
    later = entry.hardware_compatible and _numbers(compute_capability) >= _numbers(built[0])
    if compute_capability not in built and not later:
        places = ", ".join(f"sm_{sm_number(capability)}" for capability in built)
        return f"it was built for {places}, this GPU is sm_{sm_number(compute_capability)}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def this_platform() -> str:
    """Operating system and processor, as engines are bound to them: ``linux-x86_64``."""
    return f"{sys.platform}-{platform.machine().lower()}"
