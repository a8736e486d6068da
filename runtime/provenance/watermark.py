"""The invisible watermark of the reference Stable Diffusion 2, in NumPy.

The reference marks its samples with method ``dwtDct`` of the package ``invisible-watermark`` 0.2.0 and the four bytes
``SDV2``. Results here are equal to the package's byte for byte, including its rounding and its oddities.

One level of the Haar wavelet averages the chroma channel U. In each 4x4 block of the averages, the one of largest
magnitude, the first excluded, is moved to a quarter or to three quarters of a step of 36: a 0 or a 1. The 32 bits
repeat over all blocks, and reading takes the majority of each.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError
from sd2rt.engines.printable import repr_of, shown

Watermark: TypeAlias = Literal["sdv2", "none"]

MESSAGE = b"SDV2"
_BITS = np.unpackbits(np.frombuffer(MESSAGE, np.uint8))

MIN_PIXELS = 256 * 256
"""The package refuses smaller pictures."""
_MIN_SIDE = 8
"""Pixels of a block's side."""

_STEP = 36.0
_BLOCK = 4
_HALF = np.float64(0.7071067811865476)
"""Each coefficient of the Haar wavelet, as PyWavelets has it: 1/sqrt(2), rounded up."""

# OpenCV's conversion between BGR and YUV in integers, with 14 bits of fraction.
_FRACTION = 14
_ROUND = 1 << (_FRACTION - 1)
_CENTRE = 128

_Pixels: TypeAlias = NDArray[np.uint8]
_Integers: TypeAlias = NDArray[np.int32]
_Floats: TypeAlias = NDArray[np.float64]


def check_watermark(watermark: Any) -> None:
    """Check the name of a watermark.

    Raises:
        RequestError: there is none of that name.
    """
    if watermark not in ("sdv2", "none"):
        raise RequestError(f"the watermark is {shown(repr_of(watermark))}: use sdv2 or none")


def check_watermark_size(width: int, height: int) -> None:
    """Check that a picture is large enough for a watermark.

    Raises:
        RequestError: it has fewer pixels than 256x256.
    """
    if not _is_large_enough(width, height):
        raise RequestError(
            f"the watermark sdv2 needs at least 256x256 pixels, and the picture has {width}x{height}: make it "
            "larger, or leave the watermark out"
        )


def _is_large_enough(width: int, height: int) -> bool:
    return width * height >= MIN_PIXELS and min(width, height) >= _MIN_SIDE


def embed(rgb: _Pixels) -> _Pixels:
    """Return a picture [H, W, 3] with the watermark.

    All pixels may change by the conversion to YUV and back; the watermark itself is in the largest part whose sides
    are multiples of 4. As in the package, U wraps around where it leaves 0 to 255.

    Raises:
        RequestError: the picture is too small.
    """
    height, width = rgb.shape[:2]
    check_watermark_size(width, height)
    y, u, v = _to_yuv(rgb)
    rows, columns = height // 4 * 4, width // 4 * 4
    u[:rows, :columns] = _marked(u[:rows, :columns])
    return _to_rgb(y, u, v)


def _marked(u: _Integers) -> _Integers:
    # Sums and differences along the columns, then along the rows.
    low, high = _split(u.astype(np.float64), axis=0)
    average, horizontal = _split(low, axis=1)
    vertical, diagonal = _split(high, axis=1)
    blocks = _blocks(average)
    where, values = _largest(blocks)
    magnitudes = (np.abs(values) // _STEP + 0.25 + 0.5 * np.resize(_BITS, len(blocks))) * _STEP
    blocks[np.arange(len(blocks)), where] = np.where(values >= 0.0, magnitudes, -magnitudes)
    _put_blocks(average, blocks)
    # The package exchanges the details of the two axes here.
    low = _merge(average, vertical, axis=1)
    high = _merge(horizontal, diagonal, axis=1)
    # Truncated, and wrapped: a conversion of floats outside of uint8 in one step depends on the processor.
    return _merge(low, high, axis=0).astype(np.int32) & 0xFF


def read(rgb: _Pixels) -> bytes:
    """Read the four bytes of a watermark from a picture [H, W, 3]; they are ``SDV2`` if it has this one.

    Returns no bytes if the picture is too small for a watermark.
    """
    bits = read_bits(rgb)
    return b"" if bits is None else np.packbits(bits).tobytes()


def read_bits(rgb: _Pixels) -> NDArray[np.bool_] | None:
    """Read the 32 bits of a watermark; None if the picture is too small for one."""
    height, width = rgb.shape[:2]
    if not _is_large_enough(width, height):
        return None
    u = _to_yuv(rgb)[1][: height // 4 * 4, : width // 4 * 4]
    average = _split(_split(u.astype(np.float64), axis=0)[0], axis=1)[0]
    _, values = _largest(_blocks(average))
    ones = np.abs(values) % _STEP > 0.5 * _STEP
    bit = np.arange(len(ones)) % len(_BITS)
    votes, counts = np.bincount(bit, weights=ones), np.bincount(bit)
    # The package compares in 255ths.
    return np.asarray(votes / counts * 255 > 127)


def bits_that_match(rgb: _Pixels) -> int:
    """Number of the watermark's 32 bits that a picture has; 16 are to be expected of one without a watermark."""
    bits = read_bits(rgb)
    return 0 if bits is None else int((bits == _BITS).sum())


def _largest(blocks: _Floats) -> tuple[NDArray[np.intp], _Floats]:
    """Index and value of the largest magnitude of each block [N, 16], but for its first coefficient."""
    where = np.abs(blocks[:, 1:]).argmax(axis=1) + 1
    return where, blocks[np.arange(len(blocks)), where]


def _blocks(average: _Floats) -> _Floats:
    """Copy the whole 4x4 blocks of [H, W], row by row, as [N, 16]."""
    rows, columns = (side // _BLOCK for side in average.shape)
    whole = average[: rows * _BLOCK, : columns * _BLOCK].reshape(rows, _BLOCK, columns, _BLOCK)
    return whole.transpose(0, 2, 1, 3).reshape(rows * columns, _BLOCK * _BLOCK)


def _put_blocks(average: _Floats, blocks: _Floats) -> None:
    rows, columns = (side // _BLOCK for side in average.shape)
    whole = blocks.reshape(rows, columns, _BLOCK, _BLOCK).transpose(0, 2, 1, 3)
    average[: rows * _BLOCK, : columns * _BLOCK] = whole.reshape(rows * _BLOCK, columns * _BLOCK)


def _split(values: _Floats, axis: int) -> tuple[_Floats, _Floats]:
    """One level of the Haar wavelet along an axis: averages and differences of pairs."""
    even, odd = (values[0::2], values[1::2]) if axis == 0 else (values[:, 0::2], values[:, 1::2])
    even, odd = even * _HALF, odd * _HALF
    return even + odd, even - odd


def _merge(average: _Floats, difference: _Floats, axis: int) -> _Floats:
    """Inverse of :func:`_split`."""
    average, difference = average * _HALF, difference * _HALF
    shape = tuple(side * (1 + (index == axis)) for index, side in enumerate(average.shape))
    merged = np.empty(shape)
    even, odd = (merged[0::2], merged[1::2]) if axis == 0 else (merged[:, 0::2], merged[:, 1::2])
    np.add(average, difference, out=even)
    np.subtract(average, difference, out=odd)
    return merged


def _to_yuv(rgb: _Pixels) -> tuple[_Integers, _Integers, _Integers]:
    red, green, blue = (rgb[..., channel].astype(np.int32) for channel in range(3))
    y = _rounded(1868 * blue + 9617 * green + 4899 * red)
    u = _rounded((blue - y) * 8061) + _CENTRE
    v = _rounded((red - y) * 14369) + _CENTRE
    return y, u.clip(0, 255), v.clip(0, 255)


def _to_rgb(y: _Integers, u: _Integers, v: _Integers) -> _Pixels:
    u, v = u - _CENTRE, v - _CENTRE
    channels = (y + _rounded(18678 * v), y + _rounded(-6472 * u - 9519 * v), y + _rounded(33292 * u))
    return np.stack([channel.clip(0, 255).astype(np.uint8) for channel in channels], axis=-1)


def _rounded(values: _Integers) -> _Integers:
    return (values + _ROUND) >> _FRACTION
