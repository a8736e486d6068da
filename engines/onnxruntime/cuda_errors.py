"""Errors of ONNX Runtime on a GPU: out of memory, a capture that fails, or a CUDA provider that does not start."""

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
"""By CUDA's numbers: no initialisation, a driver that is a stub, too old or of another version, no such GPU, or one
that others hold."""
_REASON = re.compile(
    r"CUDA failure \d+: [^;\n]*[^;\n ]|Failed to allocate memory[^\n]*|This session cannot[^\n]*"
)
"""What of a message is worth a line: the rest is where in ONNX Runtime's sources it was raised."""


def cuda_error(what: str, device: Device, error: Exception) -> Sd2rtError:
    """What ONNX Runtime raised, as one line that begins with ``what`` and says what to do.

    MissingDependencyError where the CUDA provider does not start; EngineError otherwise.
    """
    text = str(error)
    found = _REASON.search(text)
    reason = found[0] if found else " ".join(text.split())[:200]
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        return EngineError(
            f"{what}: out of memory ({reason}): ask for a smaller --size or batch, or free the GPU"
        )
    if _CAPTURE.search(text):
        return EngineError(f"{what}: it cannot be captured as a CUDA graph ({reason}): leave cuda_graph out")
    if _NOT_STARTED.search(text):
        return no_cuda(device, reason)
    return engine_error(what, error)


def no_cuda(device: Device, reason: str) -> MissingDependencyError:
    """ONNX Runtime's CUDA provider does not start."""
    return MissingDependencyError(
        f"ONNX Runtime could not start CUDA on {device} ({reason}): check the driver and the CUDA libraries "
        "with 'nvidia-smi', or use --device cpu"
    )
