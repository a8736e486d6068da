from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from sd2rt.engines.weights.safetensors import read_metadata, read_safetensors


def file_of(text: bytes, body: bytes = bytes(16)) -> bytes:
    return struct.pack("<Q", len(text)) + text + body


def header(entry: Any, body: bytes = bytes(16)) -> bytes:
    return file_of(json.dumps({"a": entry}).encode(), body)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no header"),
        (struct.pack("<Q", 1 << 60), "longer than the file"),
        (struct.pack("<Q", 2) + b"{]", "not JSON"),
        (struct.pack("<Q", 2) + b"[]", "not a JSON object"),
        (header({"dtype": "F32", "shape": [4]}), "lacks"),
        (header({"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}), "has the dtype I8, expected one of"),
        (header({"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}), "bytes 0 to 20"),
        (header({"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}), r"shape \[2\]"),
        (header({"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]}), "shape"),
        (header({"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}), "shape"),
    ],
)
def test_damaged_safetensors(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_safetensors(data)


def test_tensors_of_one_file_do_not_share_bytes() -> None:
    """Otherwise a small file could list the same bytes any number of times, each copied."""
    entry = {"dtype": "F16", "shape": [8], "data_offsets": [0, 16]}
    with pytest.raises(ValueError, match="its tensors overlap"):
        read_safetensors(file_of(json.dumps({"a": entry, "b": entry}).encode()))


def test_what_safetensors_writes_is_read() -> None:
    tensors = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "double": np.array(0.5),
        "empty": np.zeros((0, 7), np.float32),
        "eight": np.ones((1,) * 8, np.float32),
        "whole": np.array([3]),
    }
    data = save(tensors, {"format": "pt", "tags": "x" * 1_000_000})
    loaded = read_safetensors(data, integers=True)
    assert set(loaded) == set(tensors)
    for name, tensor in loaded.items():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, tensors[name])
    assert read_metadata(data) == {"format": "pt", "tags": "x" * 1_000_000}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"shape": [1] * 9, "data_offsets": [0, 4]}, "has 9 dimensions, expected at most 8"),
        # The product of these dimensions takes minutes.
        ({"shape": [999_999_937] * 500_000, "data_offsets": [0, 4]}, "has 500000 dimensions"),
        ({"shape": "12", "data_offsets": [0, 4]}, "has the shape"),
        ({"shape": {"1": 1}, "data_offsets": [0, 4]}, "has the shape"),
        ({"shape": [10**4000] * 8, "data_offsets": [0, 4]}, r"has the shape \[10{78}\.\.\."),
        ({"shape": [0, 10**30], "data_offsets": [0, 0]}, "has the shape"),
        ({"shape": [0, 17], "data_offsets": [0, 0]}, "has the shape"),
        ({"shape": [4], "data_offsets": [10**4000, 10**4000 + 16]}, "has the shape"),
        ({"shape": [4], "data_offsets": [[], {}]}, "has the shape"),
        ({"shape": [4], "data_offsets": [0] * 100_000}, "lacks"),
        ({"shape": 4, "data_offsets": [0, 16]}, "lacks"),
    ],
)
def test_entries_that_are_out_of_bounds(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        read_safetensors(header({"dtype": "F32", **entry}))
    assert len(str(caught.value)) < 300


def test_header_that_is_out_of_bounds() -> None:
    text = b"{}".ljust((16 << 20) + 1)
    for read in (read_safetensors, read_metadata):
        with pytest.raises(
            ValueError, match="its header has 16777217 bytes, the limit for an adapter is 16777216"
        ):
            read(file_of(text))
    assert read_safetensors(file_of(text[:-1])) == {}


def test_tensors_without_bytes_are_counted_too() -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({str(number): entry for number in range((1 << 16) + 1)}).encode()
    with pytest.raises(ValueError, match="it has 65537 tensors, the limit for an adapter is 65536"):
        read_safetensors(file_of(text))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"a" * 100_000: 3}).encode(),
        json.dumps({"a": {"dtype": "F" * 100_000, "shape": [4], "data_offsets": [0, 16]}}).encode(),
        json.dumps({"a": {"dtype": [[]] * 100_000, "shape": [4], "data_offsets": [0, 16]}}).encode(),
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' + b"1" * 5000 + b"}",
        b"\xff\xfe",
    ],
    ids=["name", "dtype", "list", "deep", "digits", "no text"],
)
def test_headers_own_words_do_not_fill_a_message(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"^its (header|entry|tensor) ") as caught:
        read_safetensors(file_of(text))
    assert len(str(caught.value)) < 200


@settings(max_examples=300)
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_arbitrary_bytes(first: bytes, second: bytes) -> None:
    for read in (read_safetensors, read_metadata):
        with contextlib.suppress(ValueError):
            read(file_of(first, second))
