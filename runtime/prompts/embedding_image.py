"""Textual inversions in pictures, as AUTOMATIC1111's training writes them: in a PNG's text, or in its pixels."""

from __future__ import annotations

import base64
import binascii
import io
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.json_text import parse_json

_CHUNK = "sd-ti-embedding"
_TENSOR = "TORCHTENSOR"
_MAX_BYTES = 64 << 20
_MAX_PIXELS = 16 << 20
_LOW_BITS = 15


def read_embedding_image(data: bytes) -> dict[str, Any]:
    """Read the state dict of an embedding from a PNG file.

    The PNG's text holds it as JSON in base64. Pixels hold it in the four low bits of two blocks at the sides of the
    picture, each apart from it by a black column: the low and the high halves of the bytes of compressed JSON.

    Raises:
        ValueError: the file is no PNG, or holds no embedding.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise ValueError(f"it has {image.width}x{image.height} pixels, the limit is {_MAX_PIXELS}")
            image.load()
            text = getattr(image, "text", {}).get(_CHUNK)
            pixels = None if text is not None else np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"it is no PNG file that can be read: {error}") from None
    content = _from_pixels(pixels) if pixels is not None else _from_text(str(text))
    state = parse_json(content)
    if not isinstance(state, dict):
        raise ValueError("its embedding is not a JSON object")
    parameters = state.get("string_to_param")
    if not isinstance(parameters, dict):
        raise ValueError("its embedding has no vectors")
    return {**state, "string_to_param": {name: _tensor(value) for name, value in parameters.items()}}


def _tensor(value: Any) -> Any:
    if not isinstance(value, dict) or _TENSOR not in value:
        return value
    try:
        return np.array(value[_TENSOR], np.float32)
    except (TypeError, ValueError):
        raise ValueError("its embedding has vectors of different lengths") from None


def _from_text(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"its {_CHUNK} is not base64") from None


def _from_pixels(pixels: NDArray[np.uint8]) -> bytes:
    bright: NDArray[np.bool_] = np.all(pixels > 0, axis=2)
    rows, columns = np.flatnonzero(np.any(bright, axis=1)), np.flatnonzero(np.any(bright, axis=0))
    if not len(rows):
        raise ValueError("it holds no embedding")
    nibbles = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & np.uint8(_LOW_BITS)
    black = np.flatnonzero(nibbles.sum(axis=(0, 2)) == 0)
    if len(black) < 2:
        raise ValueError("it holds no embedding")
    low, high = nibbles[:, : black[0]], nibbles[:, black[-1] + 1 :]
    if low.shape != high.shape or low.size == 0:
        raise ValueError("it holds no embedding")
    mask = _mask(low.size).reshape(low.shape)
    packed = (high ^ mask) << 4 | (low ^ mask)
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(packed.tobytes(), _MAX_BYTES)
    except zlib.error:
        raise ValueError("it holds no embedding, or was compressed or resized since") from None
    if not stream.eof:
        raise ValueError(f"its embedding is cut off, or has more than {_MAX_BYTES} bytes")
    return content


def _mask(count: int) -> NDArray[np.uint8]:
    """Low bits of a linear congruential generator's numbers, from 0: x -> 1664525 x + 1013904223 modulo 2**32."""
    numbers = np.array([1013904223], np.uint64)
    # That of as many steps as there are numbers: their second half is the first, so many steps later.
    factor, summand = 1664525, 1013904223
    while len(numbers) < count:
        numbers = np.concatenate([numbers, (numbers * np.uint64(factor) + np.uint64(summand)) % (1 << 32)])
        factor, summand = factor * factor % (1 << 32), (factor + 1) * summand % (1 << 32)
    return (numbers[:count] % 255).astype(np.uint8) & np.uint8(_LOW_BITS)
