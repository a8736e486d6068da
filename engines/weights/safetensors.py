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
# Of an adapter, with room: trainers write up to some megabytes of metadata, and three tensors for each of 800 layers.
_LARGEST_HEADER_BYTES = 16 << 20
_MOST_TENSORS = 1 << 16
_MOST_DIMENSIONS = 8
_LONGEST_SHOWN = 80


def read_safetensors(data: bytes, *, whole: bool = False) -> dict[str, NDArray[np.float32]]:
    """The tensors of a file, in float32.

    Args:
        whole: take I64 and I32 too.

    Raises:
        ValueError: it is no safetensors file, holds numbers that are not F64, F32, F16 or BF16, or more tensors or
            dimensions than an adapter has.
    """
    header, start = _header(data)
    body = memoryview(data)[start:]
    if len(header) > _MOST_TENSORS:
        raise ValueError(f"it has {len(header)} tensors, an adapter has {_MOST_TENSORS} at most")
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
    if length > _LARGEST_HEADER_BYTES:
        raise ValueError(f"its header has {length} bytes, an adapter's has {_LARGEST_HEADER_BYTES} at most")
    try:
        header = json.loads(data[8 : 8 + length].decode())
    except (ValueError, RecursionError):
        raise ValueError("its header is not JSON") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not JSON of names")
    return header, 8 + length


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16's bits, the upper half of a float32's, as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _view(name: str, entry: Any, body: memoryview, dtypes: Mapping[str, str]) -> NDArray[Any]:
    """A tensor in place, its bfloat16 as bits."""
    label = _short(repr(name))
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        dimensions = len(shape)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"its entry {label} lacks a dtype, a shape or offsets") from None
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise ValueError(f"its tensor {label} is {_short(str(dtype))}, expected one of {', '.join(dtypes)}")
    # Before they are multiplied, which takes time that grows with the square of their number.
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(
            f"its tensor {label} has {dimensions} dimensions, expected {_MOST_DIMENSIONS} at most"
        )
    # No side of a tensor that holds something is longer than its file, and of the others none need be.
    sound = all(type(number) is int and 0 <= number <= len(body) for number in (*shape, start, end))
    if not sound or end - start != math.prod(shape) * np.dtype(dtypes[dtype]).itemsize:
        place = _short(f"{list(shape)} and bytes {start} to {end}")
        raise ValueError(f"its tensor {label} has the shape {place}")
    return np.frombuffer(body[start:end], dtypes[dtype]).reshape(shape)


def _short(text: str) -> str:
    """What a message says of a file's own words: they may be as long as its header."""
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
