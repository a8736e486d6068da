"""TensorRT and TensorRT for RTX: one Python API in two packages, and a lean one that runs only."""

from __future__ import annotations

import importlib
import platform
import sys
from typing import Any

from sd2rt.engines.errors import MissingDependencyError
from sd2rt.engines.manifest import EngineBackend

MODULES: dict[EngineBackend, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
LEAN = "tensorrt_lean"
"""Runs version-compatible engines of TensorRT, without its builder."""
_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx", LEAN: "lean"}


def import_backend(name: str) -> Any:
    """One of the modules, such as ``tensorrt_rtx``.

    Raises:
        MissingDependencyError: it is not installed, or a library that it loads is missing.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        command = f"pip install 'sd2rt[{_EXTRAS[name]}]'"
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise MissingDependencyError(f"{name} is not installed: {command}") from None
        reason = " ".join(str(error).split())[:200]
        raise MissingDependencyError(
            f"{name} cannot be loaded ({reason}): install it again with {command}"
        ) from error


def this_platform() -> str:
    """Operating system and processor, as engines are bound to them: ``linux-x86_64``."""
    return f"{sys.platform}-{platform.machine().lower()}"
