"""Embeddings in pictures, written here as AUTOMATIC1111 describes them, one number and one pixel at a time."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.prompts.textual_inversion import load_embedding


def content(vectors: Any, name: str | None = "toy") -> str:
    tensor = {"TORCHTENSOR": vectors.tolist()}
    return json.dumps(
        {"string_to_token": {"*": 265}, "string_to_param": {"*": tensor}, "name": name, "step": 3}
    )


def with_text(path: Path, text: str | bytes) -> Path:
    info = PngInfo()
    info.add_text("sd-ti-embedding", text)
    Image.new("RGB", (20, 10)).save(path, pnginfo=info)
    return path


def with_pixels(path: Path, text: str, height: int, seed: int = 0, margin: int = 0) -> Path:
    """Low halves of the bytes at the left, high halves at the right, and a picture between."""
    rng = np.random.default_rng(seed)
    data = zlib.compress(text.encode(), 9)
    row = -(-len(data) // (3 * height)) * 3
    filled = (data * height)[: row * height] if len(data) < row * height else data
    filled = filled + data[: row * height - len(filled)]
    blocks = []
    for shift in (0, 4):
        number, pixels = 0, []
        for byte in filled:
            number = (1664525 * number + 1013904223) % 2**32
            nibble = (byte >> shift & 15) ^ (number % 255 & 15)
            # The high bits are a pattern, which is never black.
            pixels.append(nibble | int(rng.integers(1, 16)) << 4)
        blocks.append(np.array(pixels, np.uint8).reshape(height, -1, 3))
    picture = rng.integers(1, 256, (height, 30, 3), np.uint8)
    black = np.zeros((height, 1, 3), np.uint8)
    whole = np.concatenate([blocks[0], black, picture, black, blocks[1]], axis=1)
    Image.fromarray(np.pad(whole, ((margin, margin), (margin, margin), (0, 0)))).save(path)
    return path


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 4),
    height=st.sampled_from([8, 33, 64]),
    seed=st.integers(0, 1000),
    margin=st.integers(0, 3),
)
def test_pixels(
    tmp_path_factory: pytest.TempPathFactory, count: int, height: int, seed: int, margin: int
) -> None:
    vectors = np.random.default_rng(seed).standard_normal((count, 32)).astype(np.float32)
    path = tmp_path_factory.getbasetemp() / "my picture.png"
    with_pixels(path, content(vectors), height, seed, margin)
    actual = load_embedding(path, None, allow_pickle=False)
    np.testing.assert_array_equal(actual.vectors, vectors)
    # Unlike that of other files, the name in a picture is AUTOMATIC1111's too.
    assert (actual.token, actual.a1111_name) == ("toy", "toy")


@pytest.mark.parametrize("name", ["toy", None])
def test_text(tmp_path: Path, name: str | None) -> None:
    vectors = np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)
    path = with_text(tmp_path / "my picture.png", base64.b64encode(content(vectors, name).encode()))
    actual = load_embedding(path, None, allow_pickle=False)
    np.testing.assert_array_equal(actual.vectors, vectors)
    assert actual.token == actual.a1111_name == (name or "my picture")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"no base64!", "sd-ti-embedding is not base64"),
        (base64.b64encode(b"{"), "cannot be read"),
        (base64.b64encode(b"[]"), "is not a JSON object"),
        (base64.b64encode(b"{}"), "has no vectors"),
        (base64.b64encode(b'{"string_to_param": {"*": 1}}'), "holds 0 tensors"),
        (
            base64.b64encode(b'{"string_to_param": {"*": {"TORCHTENSOR": [[1], [1, 2]]}}}'),
            "different lengths",
        ),
        (base64.b64encode(b'{"string_to_param": {"*": {"TORCHTENSOR": "x"}}}'), "different lengths"),
    ],
)
def test_text_that_holds_none(tmp_path: Path, text: bytes, said: str) -> None:
    with pytest.raises(RequestError, match=said) as error:
        load_embedding(with_text(tmp_path / "a.png", text), None, allow_pickle=False)
    assert "\n" not in str(error.value)


def test_pictures_that_hold_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    noise = rng.integers(1, 256, (20, 40, 3), np.uint8)
    striped = noise.copy()
    striped[:, [10, 29]] = 0
    for pixels in (noise, striped, np.zeros((5, 5, 3), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "a.png")
        with pytest.raises(RequestError, match="it holds no embedding"):
            load_embedding(tmp_path / "a.png", None, allow_pickle=False)
    # A picture that was scaled since.
    path = with_pixels(tmp_path / "b.png", content(np.ones((1, 32))), 16)
    with Image.open(path) as image:
        image.resize((image.width * 2, image.height)).save(tmp_path / "c.png")
    for name, data in (("c.png", None), ("d.png", b"no picture"), ("e.png", path.read_bytes()[:200])):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(RequestError, match="cannot be read"):
            load_embedding(tmp_path / name, None, allow_pickle=False)


def test_a_stream_that_grows_without_end(tmp_path: Path) -> None:
    path = with_pixels(tmp_path / "a.png", "[" + " " * (80 << 20) + "]", 64)
    with pytest.raises(RequestError, match="has more than 67108864 bytes"):
        load_embedding(path, None, allow_pickle=False)
