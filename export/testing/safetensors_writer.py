"""Writing safetensors files one tensor at a time, so that their size costs no memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO

import torch


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor that is not made before it is needed."""

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
    """Write tensors in the safetensors format, one in memory at a time (the library would want all)."""
    entries = list(entries)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        kept = torch.int64 if entry.integer else dtype
        start, end = end, end + math.prod(entry.shape) * kept.itemsize
        header[entry.key] = {
            "dtype": _DTYPE_NAMES[kept],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for entry in entries:
        stream.write(as_stored(entry.make(), dtype).reshape(-1).view(torch.uint8).numpy().data)


def as_stored(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor as a file of ``dtype`` keeps it: integers stay integers."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
