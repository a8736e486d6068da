"""Compare the length of a safetensors file with what its header describes."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from sd2rt.engines.json_text import parse_json
from sd2rt.engines.regular_file import open_regular

_MAX_HEADER_BYTES = 100_000_000
"""Limit of the safetensors library."""


def extent(path: Path) -> tuple[int, int] | None:
    """Bytes that a file has, and that its header describes; None if it has no header."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        start = stream.read(8)
        if len(start) < 8:
            return None
        (length,) = struct.unpack("<Q", start)
        if length > _MAX_HEADER_BYTES:
            return None
        header = stream.read(length)
    if not header.startswith(b"{"):
        return None
    if len(header) < length:
        return size, 8 + length
    try:
        entries = parse_json(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        return size, 8 + length + max(map(int, ends), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None
