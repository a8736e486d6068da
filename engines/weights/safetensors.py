"""Read safetensors files of adapters with NumPy alone: a header length, a JSON header, and the tensor data."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.json_text import parse_json
from sd2rt.engines.regular_file import open_regular

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1"}
_INTEGER_DTYPES = {"I64": "<i8", "I32": "<i4", "U8": "u1", "I8": "i1", "BOOL": "?"}
_METADATA = "__metadata__"
# Generous limits for adapters: trainers write a few megabytes of metadata, and three tensors for each of 800 layers.
_MAX_HEADER_BYTES = 16 << 20
_MAX_TENSORS = 1 << 16
_MAX_DIMENSIONS = 8
_MAX_DIGITS = 4300
_MAX_CHARACTERS_SHOWN = 80


def read_whole(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a file of at most ``limit`` bytes, of which its header describes all.

    The header is checked first: a sparse file of gigabytes takes no room on disk.

    Raises:
        OSError: it cannot be read, is not a regular file or is larger.
        ValueError: it is not a safetensors file, or is longer or shorter than its header says.
    """
    with open_regular(path, limit) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        start += file.read(_header_length(start, size))
        header, offset = _header(start)
        ends = (_end(name, entry) for name, entry in header.items() if name != _METADATA)
        described = offset + max(ends, default=0)
        if described != size:
            raise ValueError(f"it has {size} bytes, its header describes {_shortened(str(described))}")
        return start + file.read(size - offset)


def _end(name: str, entry: Any) -> int:
    """Offset of the end of a tensor in the file's data."""
    try:
        _, end = entry["data_offsets"]
        if type(end) is int:
            return end
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"its entry {_shortened(repr(name))} lacks a dtype, a shape or offsets")


def read_safetensors(data: bytes, *, integers: bool = False) -> dict[str, NDArray[np.float32]]:
    """Read the tensors of a file, converted to float32.

    Args:
        integers: accept whole numbers and truth values too.

    Raises:
        ValueError: the data is not a safetensors file, has dtypes other than F64, F32, F16, BF16 or float8, or has
            more tensors or dimensions than any adapter.
    """
    header, start = _header(data)
    body = memoryview(data)[start:]
    if len(header) > _MAX_TENSORS:
        raise ValueError(f"it has {len(header)} tensors, the limit for an adapter is {_MAX_TENSORS}")
    dtypes = _DTYPES | _INTEGER_DTYPES if integers else _DTYPES
    views = {name: _view(name, entry, body, dtypes) for name, entry in header.items() if name != _METADATA}
    # The format forbids overlaps: without this check a small file could describe gigabytes of tensors.
    if sum(view.nbytes for view in views.values()) > len(body):
        raise ValueError("its tensors overlap")
    return {
        name: _WIDEN[kind](view) if (kind := header[name]["dtype"]) in _WIDEN else view.astype(np.float32)
        for name, view in views.items()
    }


def read_metadata(data: bytes) -> dict[str, str]:
    """Read the string metadata in a file's header.

    Raises:
        ValueError: the data is not a safetensors file.
    """
    metadata = _header(data)[0].get(_METADATA, {})
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is not a JSON object")
    return {name: text for name, text in metadata.items() if isinstance(text, str)}


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    """Parse the JSON header; returns it with the offset of the tensor data."""
    length = _header_length(data, len(data))
    try:
        # Entries are checked one by one, with messages that name them.
        header = parse_json(data[8 : 8 + length].decode(), max_digits=_MAX_DIGITS)
    except ValueError:
        raise ValueError("its header is not JSON") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header, 8 + length


def _header_length(start: bytes, size: int) -> int:
    if len(start) < 8:
        raise ValueError("it has no header")
    (length,) = struct.unpack_from("<Q", start)
    if length > size - 8:
        raise ValueError("its header is longer than the file")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"its header has {length} bytes, the limit for an adapter is {_MAX_HEADER_BYTES}")
    return int(length)


def widen_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Convert the bits of bfloat16 numbers, which are the upper half of float32's, to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def widen_float8(bits: NDArray[np.uint8], exponent_bits: int) -> NDArray[np.float32]:
    """Convert the bits of float8 numbers (arXiv:2209.05433) to float32.

    Args:
        exponent_bits: 5 for E5M2, which has infinities and NaN as IEEE 754's formats have; 4 for E4M3, which has
            NaN for all bits set only.
    """
    mantissa_bits = 7 - exponent_bits
    codes = np.arange(256)
    exponents, mantissas = codes >> mantissa_bits & (1 << exponent_bits) - 1, codes & (1 << mantissa_bits) - 1
    bias = (1 << exponent_bits - 1) - 1
    fractions = mantissas / (1 << mantissa_bits) + (exponents > 0)
    values = np.ldexp(fractions, np.maximum(exponents, 1) - bias)
    if exponent_bits == 5:
        values[exponents == 31] = np.where(mantissas[exponents == 31] == 0, np.inf, np.nan)
    else:
        values[(codes & 127) == 127] = np.nan
    table = np.where(codes < 128, values, -values).astype(np.float32)
    widened: NDArray[np.float32] = table[bits]
    return widened


_WIDEN: dict[str, Callable[[NDArray[Any]], NDArray[np.float32]]] = {
    "BF16": widen_bfloat16,
    "F8_E4M3": lambda bits: widen_float8(bits, 4),
    "F8_E5M2": lambda bits: widen_float8(bits, 5),
}


def _view(name: str, entry: Any, body: memoryview, dtypes: Mapping[str, str]) -> NDArray[Any]:
    """View of a tensor in the file's data, without a copy; bfloat16 and float8 as bits."""
    label = _shortened(repr(name))
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        dimensions = len(shape)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"its entry {label} lacks a dtype, a shape or offsets") from None
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise ValueError(
            f"its tensor {label} has the dtype {_shortened(str(dtype))}, expected one of {', '.join(dtypes)}"
        )
    # Checked before multiplication, whose time grows with the square of the number of dimensions.
    if dimensions > _MAX_DIMENSIONS:
        raise ValueError(
            f"its tensor {label} has {dimensions} dimensions, expected at most {_MAX_DIMENSIONS}"
        )
    # No dimension of a tensor with data can exceed the file size, and an empty tensor needs none that does.
    valid = all(type(number) is int and 0 <= number <= len(body) for number in (*shape, start, end))
    if not valid or end - start != math.prod(shape) * np.dtype(dtypes[dtype]).itemsize:
        layout = _shortened(f"{list(shape)} and the bytes {start} to {end}")
        raise ValueError(f"its tensor {label} has the shape {layout}, which do not match")
    return np.frombuffer(body[start:end], dtypes[dtype]).reshape(shape)


def _shortened(text: str) -> str:
    """Shorten text from a file for a message: it may be as long as the header."""
    return text if len(text) <= _MAX_CHARACTERS_SHOWN else f"{text[:_MAX_CHARACTERS_SHOWN]}..."
