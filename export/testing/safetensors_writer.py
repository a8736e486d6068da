"""Write safetensors files one tensor at a time, so that memory use does not grow with file size."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO

import torch


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor, created by ``make`` when it is written."""

    key: str
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]
    integer: bool = False


_DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}


def write_safetensors(stream: IO[bytes], entries: Iterable[Entry], dtype: torch.dtype) -> None:
    """Write tensors in the safetensors format with one in memory at a time; the library needs all at once."""
    entries = list(entries)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        stored_dtype = torch.int64 if entry.integer else dtype
        start, end = end, end + math.prod(entry.shape) * stored_dtype.itemsize
        header[entry.key] = {
            "dtype": _DTYPE_NAMES[stored_dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for entry in entries:
        stream.write(as_stored(entry.make(), dtype).reshape(-1).view(torch.uint8).numpy().data)


def as_stored(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor as stored in a file of ``dtype``: floating-point tensors are cast, integers are not."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
