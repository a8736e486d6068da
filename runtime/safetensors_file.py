"""Reading small safetensors files with NumPy alone: a length, a JSON header, and the tensors' bytes."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_safetensors(data: bytes) -> dict[str, NDArray[np.float32]]:
    """The tensors of a file, in float32.

    Raises:
        ValueError: it is no safetensors file, or holds numbers that are not F64, F32, F16 or BF16.
    """
    if len(data) < 8:
        raise ValueError("it has no header")
    (length,) = struct.unpack_from("<Q", data)
    if length > len(data) - 8:
        raise ValueError("its header does not fit into it")
    try:
        header = json.loads(data[8 : 8 + length].decode())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise ValueError("its header is not JSON") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not JSON of names")
    body = memoryview(data)[8 + length :]
    views = {name: _view(name, entry, body) for name, entry in header.items() if name != "__metadata__"}
    # No two tensors of such a file share bytes, so that what is read of it is no larger than it is.
    if sum(view.nbytes for view in views.values()) > len(body):
        raise ValueError("its tensors overlap")
    return {
        name: widen_bfloat16(view) if header[name]["dtype"] == "BF16" else view.astype(np.float32)
        for name, view in views.items()
    }


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16's bits, the upper half of a float32's, as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _view(name: str, entry: Any, body: memoryview) -> NDArray[Any]:
    """A tensor in place, its bfloat16 as bits."""
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, start, end))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"its entry {name!r} lacks a dtype, a shape or offsets") from None
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"its tensor {name!r} is {dtype}, expected one of {', '.join(_DTYPES)}")
    if not whole or end > len(body) or end - start != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize:
        raise ValueError(f"its tensor {name!r} has the shape {list(shape)} and bytes {start} to {end}")
    return np.frombuffer(body[start:end], _DTYPES[dtype]).reshape(shape)
