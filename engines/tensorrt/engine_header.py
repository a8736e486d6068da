"""Read the header of a TensorRT for RTX engine to find out if it runs on a GPU, without loading the engine."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from sd2rt.engines.cuda.gpu_info import sm_number
from sd2rt.engines.tensorrt.trt_log import shared_log

MASK_OFFSET = 0x20
"""Offset in bytes of a little-endian uint32 with one bit for each compute capability in the engine."""
MASK_BITS = {"7.5": 0x01, "8.0": 0x02, "8.6": 0x04, "8.9": 0x08, "12.0": 0x10, "12.1": 0x20}


class HeaderReader:
    """Checks if engines run on the installed GPU, by asking TensorRT for RTX.

    Comparing compute capabilities is not enough: no engine can be built for those between 8.9 and 12.0, so even a
    portable engine does not run on an H100 (9.0).

    Args:
        module: TensorRT for RTX.
        compute_capability: the GPU's, such as ``9.0``.
    """

    def __init__(self, module: Any, compute_capability: str) -> None:
        self._trt, self._capability = module, compute_capability
        self._log = shared_log(module)
        self._runtime = module.Runtime(self._log)

    def mismatch_of(self, path: Path) -> str | None:
        """The reason that an engine does not run on the GPU, or None. Unreadable files fail when they are loaded."""
        try:
            with path.open("rb") as file:
                header = file.read(self._runtime.engine_header_size)
        except OSError:
            return None
        validity, diagnostics = self._runtime.get_engine_validity(header)
        # Discard the logged reason, so that it is not reported for a later error.
        self._log.take_error()
        if validity != self._trt.EngineValidity.INVALID:
            return None
        flags = self._trt.EngineInvalidityDiagnostics
        reasons = {name for name, item in flags.__members__.items() if int(diagnostics) & int(item.value)}
        # Without a driver every engine is invalid for no stated reason: fall back to the mask.
        unexplained = reasons <= {"CUDA_ERROR"}
        if "UNSUPPORTED_CC" in reasons or (unexplained and not self._in_mask(header)):
            return f"it has no code for this GPU, which is sm_{sm_number(self._capability)}"
        return None if unexplained else ", ".join(sorted(reasons)).lower().replace("_", " ")

    def _in_mask(self, header: bytes) -> bool:
        if len(header) < MASK_OFFSET + 4:
            return False
        (mask,) = struct.unpack_from("<I", header, MASK_OFFSET)
        return bool(mask & MASK_BITS.get(self._capability, 0))
