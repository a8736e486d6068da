"""Reading safetensors files of adapters with NumPy alone: a length, a JSON header, and the tensors' bytes."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_WHOLE = {"I64": "<i8", "I32": "<i4"}
_METADATA = "__metadata__"


def read_safetensors(data: bytes, *, whole: bool = False) -> dict[str, NDArray[np.float32]]:
    """The tensors of a file, in float32.

    Args:
        whole: take I64 and I32 too.

    Raises:
        ValueError: it is no safetensors file, or holds numbers that are not F64, F32, F16 or BF16.
    """
    header, start = _header(data)
    body = memoryview(data)[start:]
    dtypes = _DTYPES | _WHOLE if whole else _DTYPES
    views = {name: _view(name, entry, body, dtypes) for name, entry in header.items() if name != _METADATA}
    # No two tensors of such a file share bytes, so that what is read of it is no larger than it is.
    if sum(view.nbytes for view in views.values()) > len(body):
        raise ValueError("its tensors overlap")
    return {
        name: widen_bfloat16(view) if header[name]["dtype"] == "BF16" else view.astype(np.float32)
        for name, view in views.items()
    }


def read_metadata(data: bytes) -> dict[str, str]:
    """The texts that a file holds beside its tensors.

    Raises:
        ValueError: it is no safetensors file.
    """
    known = _header(data)[0].get(_METADATA, {})
    if not isinstance(known, dict):
        raise ValueError("its metadata is not JSON of names")
    return {name: text for name, text in known.items() if isinstance(text, str)}


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    """The JSON of a file, and where its tensors begin."""
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
    return header, 8 + length


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16's bits, the upper half of a float32's, as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _view(name: str, entry: Any, body: memoryview, dtypes: Mapping[str, str]) -> NDArray[Any]:
    """A tensor in place, its bfloat16 as bits."""
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, start, end))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"its entry {name!r} lacks a dtype, a shape or offsets") from None
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise ValueError(f"its tensor {name!r} is {dtype}, expected one of {', '.join(dtypes)}")
    if not whole or end > len(body) or end - start != math.prod(shape) * np.dtype(dtypes[dtype]).itemsize:
        raise ValueError(f"its tensor {name!r} has the shape {list(shape)} and bytes {start} to {end}")
    return np.frombuffer(body[start:end], dtypes[dtype]).reshape(shape)
