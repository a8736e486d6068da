"""The header of an engine of TensorRT for RTX: whether it runs on a GPU, without loading the rest."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from sd2rt.engines.cuda.gpu_info import sm_number
from sd2rt.engines.tensorrt.trt_log import shared_log

MASK_OFFSET = 0x20
"""Bytes before a little-endian number of 32 bits, which has a bit for each GPU that the engine holds code for."""
MASK_BITS = {"7.5": 0x01, "8.0": 0x02, "8.6": 0x04, "8.9": 0x08, "12.0": 0x10, "12.1": 0x20}


class HeaderReader:
    """Asks TensorRT for RTX whether engines run on the GPU at hand.

    The compute capability alone does not tell: none between 8.9 and 12.0 can be built for, and an engine for all that
    can does not run on an H100.

    Args:
        module: TensorRT for RTX.
        compute_capability: of the GPU, such as ``9.0``.
    """

    def __init__(self, module: Any, compute_capability: str) -> None:
        self._trt, self._capability = module, compute_capability
        self._log = shared_log(module)
        self._runtime = module.Runtime(self._log)

    def unfit(self, path: Path) -> str | None:
        """Why an engine does not run here, None where it does; a file that cannot be read is left to its loading."""
        try:
            with path.open("rb") as file:
                header = file.read(self._runtime.engine_header_size)
        except OSError:
            return None
        validity, diagnostics = self._runtime.get_engine_validity(header)
        # It has written why, and the next error is another one's.
        self._log.take_error()
        if validity != self._trt.EngineValidity.INVALID:
            return None
        reasons = self._trt.EngineInvalidityDiagnostics
        why = {name for name, item in reasons.__members__.items() if int(diagnostics) & int(item.value)}
        # It asks the driver for the GPU: without one it calls everything invalid, and gives no reason.
        silent = why <= {"CUDA_ERROR"}
        if "UNSUPPORTED_CC" in why or (silent and not self._in_mask(header)):
            return f"it holds no code for this GPU, which is sm_{sm_number(self._capability)}"
        return None if silent else ", ".join(sorted(why)).lower().replace("_", " ")

    def _in_mask(self, header: bytes) -> bool:
        if len(header) < MASK_OFFSET + 4:
            return False
        (mask,) = struct.unpack_from("<I", header, MASK_OFFSET)
        return bool(mask & MASK_BITS.get(self._capability, 0))
