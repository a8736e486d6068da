"""Gaussian blur of masks with a kernel of limited width, as OpenCV does it for AUTOMATIC1111."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_TRUNCATE = 2.5
"""Standard deviations after which AUTOMATIC1111's kernel ends."""
_BLOCK = 256
"""Columns that one matrix product makes."""


def blurred(mask: NDArray[np.uint8], across: float, down: float) -> NDArray[np.uint8]:
    """Blur a mask [H, W] by standard deviations in pixels; 0 leaves a direction as it is.

    The width decides how far a mask reaches, and with it which area is cropped: hence not Pillow's filter, whose
    kernel is an approximation and wider. Edges are mirrored without repeating the outer pixel, and values are rounded
    after each direction.
    """
    if across > 0:
        mask = _rows_blurred(mask, across)
    if down > 0:
        mask = np.ascontiguousarray(_rows_blurred(np.ascontiguousarray(mask.T), down).T)
    return mask


def _rows_blurred(mask: NDArray[np.uint8], deviation: float) -> NDArray[np.uint8]:
    radius = int(_TRUNCATE * deviation + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
    weights /= weights.sum()
    width = mask.shape[1]
    padded = np.pad(mask, ((0, 0), (radius, radius)), mode="reflect" if width > 1 else "edge")
    # Each column of the matrix has the kernel at another place, so that a product makes a block of columns.
    matrix = np.zeros((_BLOCK + 2 * radius, _BLOCK), np.float32)
    for column in range(_BLOCK):
        matrix[column : column + 2 * radius + 1, column] = weights
    result = np.empty_like(mask)
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        part = padded[:, start : stop + 2 * radius].astype(np.float32)
        product = part @ matrix[: part.shape[1], : stop - start]
        result[:, start:stop] = np.clip(product + np.float32(0.5), 0, 255).astype(np.uint8)
    return result
