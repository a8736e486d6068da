"""Safetensors headers: of LoRAs, embeddings and checkpoints."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

from benchmarks.faults.hostile_files.case import Case, Cases, ReaderName, written

_KEYS: dict[ReaderName, str] = {
    "lora": "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
    "embedding": "<toy>",
    "checkpoint": "model.diffusion_model.input_blocks.0.0.weight",
}


def _file(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def headers(seed: int, count: int) -> Cases:
    """Headers that claim sizes or are damaged, and ``count`` random ones for each reader."""
    source = random.Random(seed)
    for reader, key in _KEYS.items():
        for name, content in _headers(key).items():
            # Of an embedding any key is its name, and the last of two equal keys counts.
            right = reader == "embedding" and name in ("lines in a key", "same key twice", "long key")
            make = written("a.safetensors", content)
            yield Case("safetensors headers", f"{name}, as {reader}", reader, make, right)
        for name, size in (("a header", 1 << 33), ("zeros", 1 << 40)):
            start = _file(_entry(key, [2, 2], [0, 16]), bytes(16)) if name == "a header" else b""
            sparse = written("a.safetensors", start, grown_to=size)
            yield Case("safetensors headers", f"{name} and {size} zeros, as {reader}", reader, sparse)
        for number in range(count):
            header = json.dumps({key: _random_entry(source)}).encode()
            content = _file(header, source.randbytes(16))
            yield Case(
                "safetensors headers",
                f"random {number}, as {reader}",
                reader,
                written("a.safetensors", content),
            )


def _entry(key: str, shape: Any, offsets: Any, dtype: Any = "F32") -> bytes:
    return json.dumps({key: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


def _many(key: str, count: int, numbers: int, step: int, size: int) -> bytes:
    """Content of a file of ``count`` tensors, each ``step`` bytes after the one before."""
    offsets = ((step * index, step * index + 4 * numbers) for index in range(count))
    entries = {
        f"{key}.{index}": {"dtype": "F32", "shape": [numbers], "data_offsets": [start, end]}
        for index, (start, end) in enumerate(offsets)
    }
    return _file(json.dumps(entries).encode(), bytes(size))


def _random_entry(source: random.Random) -> dict[str, Any]:
    numbers: tuple[Any, ...] = (
        0,
        1,
        3,
        16,
        -1,
        1 << 31,
        1 << 63,
        1 << 64,
        1 << 100,
        1.5,
        None,
        "4",
        [],
        {},
        True,
    )
    return {
        "dtype": source.choice(("F16", "F64", "BF16", "I64", "F8_E4M3", "", None, 5, "BOOL")),
        "shape": [source.choice(numbers) for _ in range(source.randint(0, 9))],
        "data_offsets": [source.choice(numbers) for _ in range(source.choice((0, 1, 2, 2, 2, 3)))],
    }


def _headers(key: str) -> dict[str, bytes | Callable[[], bytes]]:
    data = bytes(16)
    shapes: dict[str, Any] = {
        "a million ones": [1] * 1_000_000,
        "a million twos": [2] * 1_000_000,
        "thousands beside zero": [0] + [(1 << 63) - 1] * 100_000,
        "thousands of long numbers": [10**4000] * 500,
        "2^62": [1 << 62],
        "2^40": [1 << 40, 1],
        "a product of 2^64": [1 << 32, 1 << 32],
        "negative": [-2, -2],
        "fractions": [2.0, 2.0],
        "text": "22",
        "an object": {"0": 2},
        "deep": json.loads("[" * 900 + "]" * 900),
    }
    offsets: dict[str, Any] = {
        "beyond the end": [0, 1 << 40],
        "backwards": [16, 0],
        "negative": [-16, 0],
        "2^64": [0, 1 << 64],
        "one": [0],
        "text": ["0", "16"],
    }
    files: dict[str, bytes | Callable[[], bytes]] = {}
    files |= {f"shape {name}": _file(_entry(key, shape, [0, 16]), data) for name, shape in shapes.items()}
    files |= {
        f"shape {name} without data": _file(_entry(key, shape, [0, 0])) for name, shape in shapes.items()
    }
    files |= {f"offsets {name}": _file(_entry(key, [2, 2], value), data) for name, value in offsets.items()}
    one = _entry(key, [2, 2], [0, 16])
    return files | {
        "empty": b"",
        "seven bytes": b"1234567",
        "length 2^64 - 1": _file(one, data, (1 << 64) - 1),
        "length 2^40": _file(one, data, 1 << 40),
        "length 0": _file(b"", data),
        "length too short": _file(one, data, len(one) - 1),
        "no object": _file(b"[]", data),
        "no JSON": _file(b"\xff" * 1000, data),
        "deep": _file(b'{"a":' * 200_000, data),
        "deep lists": _file(b"[" * 2_000_000, data),
        "spaces": _file(one + b" " * (17 << 20), data),
        "long number": _file(b'{"a": ' + b"9" * 5_000_000 + b"}", data),
        "long key": _file(_entry("k" * 5_000_000, [2, 2], [0, 16]), data),
        "lines in a key": _file(_entry("a\nb\x1b[31m", [2, 2], [0, 16]), data),
        "70000 overlapping": lambda: _many(key, 70_000, 4, 0, 16),
        "70000 apart": lambda: _many(key, 70_000, 1, 4, 280_000),
        "500 of 16 MB that overlap": lambda: _many(key, 500, 4 << 20, 0, 16 << 20),
        "metadata of numbers": _file(b'{"__metadata__": 5}'),
        "deep metadata": _file(
            json.dumps({"__metadata__": {"lora_adapter_metadata": "[" * 100_000}}).encode()
        ),
        "many metadata": _file(json.dumps({"__metadata__": {str(i): "" for i in range(100_000)}}).encode()),
        "same key twice": _file(one[:-1] + b", " + one[1:], data),
        "unknown dtype": _file(_entry(key, [2, 2], [0, 16], "F3"), data),
        "trailing": _file(one, data + bytes(1 << 20)),
    }
