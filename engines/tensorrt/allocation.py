"""Call TensorRT functions that allocate GPU memory, with one retry after freeing the pool's unused memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from sd2rt.engines.cuda.device import EXCLUSIVE, CudaDevice
from sd2rt.engines.tensorrt.trt_log import TrtLog

_NO_MEMORY = re.compile(r"out ?of ?memory", re.IGNORECASE)


def out_of_memory(reason: str) -> bool:
    """True if a logged error says that memory ran out."""
    return bool(_NO_MEMORY.search(reason))


def allocate(device: CudaDevice, log: TrtLog, create: Callable[[], Any]) -> tuple[Any, str]:
    """Create an object of TensorRT's; return it, or None and the logged reason.

    TensorRT does not allocate from the device's pool, which keeps the memory that sessions have freed. If memory runs
    out, the pool is trimmed and ``create`` is called once more.
    """
    with EXCLUSIVE:
        log.take_error()
        created = create()
        if created is None and out_of_memory(reason := log.take_error()):
            device.trim()
            created = create()
            reason = log.take_error()
        return created, "" if created is not None else reason
