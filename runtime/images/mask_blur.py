"""Gaussian blur of masks with a kernel of limited width, as OpenCV does it for AUTOMATIC1111."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_TRUNCATE = 2.5
"""Standard deviations after which AUTOMATIC1111's kernel ends."""
_ONE = 256
"""Sum of the weights."""
_BLOCK = 256
"""Columns that one matrix product makes."""


def blurred(mask: NDArray[np.uint8], across: float, down: float) -> NDArray[np.uint8]:
    """Blur a mask [H, W] by standard deviations in pixels; 0 leaves a direction as it is.

    The weights decide how far a mask reaches, and with it which area is cropped: hence OpenCV's, and not Pillow's
    filter, whose kernel is wider. Edges are mirrored without repeating the outer pixel, and values are rounded after
    each direction.
    """
    if across > 0:
        mask = _rows_blurred(mask, across)
    if down > 0:
        mask = np.ascontiguousarray(_rows_blurred(np.ascontiguousarray(mask.T), down).T)
    return mask


def kernel(deviation: float) -> NDArray[np.int64]:
    """Return the weights of a Gaussian in 256ths, as OpenCV rounds them for 8-bit images.

    From the ends to the middle, the rounding error of each weight is added to the next; the middle one makes the sum
    256.
    """
    radius = int(_TRUNCATE * deviation + 0.5)
    exact = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
    exact *= _ONE / exact.sum()
    weights = np.zeros(2 * radius + 1, np.int64)
    error = 0.0
    for index in range(radius):
        value = float(exact[index]) + error
        weights[index] = weights[-1 - index] = round(value)
        error = value - round(value)
    weights[radius] = _ONE - weights.sum()
    return weights


def _rows_blurred(mask: NDArray[np.uint8], deviation: float) -> NDArray[np.uint8]:
    weights = kernel(deviation)
    radius, width = len(weights) // 2, mask.shape[1]
    padded = np.pad(mask, ((0, 0), (radius, radius)), mode="reflect" if width > 1 else "edge")
    # Each column of the matrix has the kernel at another place, so that a product makes a block of columns. Its
    # sums are whole numbers below 2**24: float32 has them exactly.
    matrix = np.zeros((_BLOCK + 2 * radius, _BLOCK), np.float32)
    for column in range(_BLOCK):
        matrix[column : column + 2 * radius + 1, column] = weights
    result = np.empty_like(mask)
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        part = padded[:, start : stop + 2 * radius].astype(np.float32)
        sums = (part @ matrix[: part.shape[1], : stop - start]).astype(np.int64)
        result[:, start:stop] = np.clip((sums + _ONE // 2) // _ONE, 0, 255)
    return result
