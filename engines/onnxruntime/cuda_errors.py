"""Translate ONNX Runtime's CUDA errors: out of memory, a failed graph capture, a provider that did not start."""

from __future__ import annotations

import re

from sd2rt.engines.errors import EngineError, MissingDependencyError, Sd2rtError, engine_error
from sd2rt.engines.interface import Device

_NO_MEMORY = re.compile(
    r"out of memory|Failed to allocate memory|bad_alloc|ErrorMemoryAllocation|_ALLOC_FAILED", re.IGNORECASE
)
_CAPTURE = re.compile(r"graph capture|StreamCapture|stream is capturing|CUDA failure 90\d|during capture")
_NOT_STARTED = re.compile(
    r"CUDA failure (3|34|35|36|46|100|101|802|803|804|999)\b|[Ff]ailed to load (shared )?library|"
    r"libonnxruntime_providers|CUDA_PATH is set"
)
"""CUDA error codes: initialisation failed; the driver is a stub, too old or mismatched; the GPU is missing or in
exclusive use by another process."""
_REASON = re.compile(
    r"CUDA failure \d+: [^;\n]*[^;\n ]|Failed to allocate memory[^\n]*|This session cannot[^\n]*"
)
"""The useful part of a message; the rest is the source location in ONNX Runtime."""


def reason_of(error: Exception) -> str:
    """The useful part of an error's message, in one line."""
    text = str(error)
    match = _REASON.search(text)
    return match[0] if match else " ".join(text.split())[:200]


def is_capture_error(error: Exception) -> bool:
    """True if ONNX Runtime could not or would not capture a graph."""
    return bool(_CAPTURE.search(str(error)))


def cuda_error(what: str, device: Device, error: Exception) -> Sd2rtError:
    """Translate an ONNX Runtime error to one line that begins with ``what`` and names a remedy.

    The result is a MissingDependencyError if the CUDA provider did not start, an EngineError otherwise.
    """
    text, reason = str(error), reason_of(error)
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        return EngineError(
            f"{what}: out of memory ({reason}): ask for a smaller --size or batch, or free the GPU"
        )
    if is_capture_error(error):
        return EngineError(f"{what}: CUDA graph capture failed ({reason}): leave cuda_graph out")
    if _NOT_STARTED.search(text):
        return no_cuda(device, reason)
    return engine_error(what, error)


def no_cuda(device: Device, reason: str) -> MissingDependencyError:
    """The error for a CUDA provider that did not start."""
    return MissingDependencyError(
        f"ONNX Runtime could not start CUDA on {device} ({reason}): check the driver and the CUDA libraries "
        "with 'nvidia-smi', or use --device cpu"
    )
