"""Resampling that matches ``torch.nn.functional.interpolate``, so that results agree with diffusers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_A = -0.75
"""Parameter of the cubic kernel, as in torch."""


def nearest(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resample [C, H, W] to [C, height, width] like mode "nearest": row i copies row floor(i * H / height)."""
    rows = _nearest_indices(values.shape[1], height)
    columns = _nearest_indices(values.shape[2], width)
    return values[:, rows[:, None], columns]


def bicubic(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resample [H, W] to [height, width] like mode "bicubic" without aligned corners or antialiasing.

    Cubic convolution (Keys, 1981): each value combines 4 x 4 neighbours and can slightly exceed their range.
    Edge values are repeated beyond the edge.
    """
    indices, weights = _cubic_taps(values.shape[1], width)
    values = (values[:, indices] * weights).sum(2)  # [H, width, 4] -> [H, width]
    indices, weights = _cubic_taps(values.shape[0], height)
    values = (values[indices] * weights[:, :, None]).sum(1)  # [height, 4, width] -> [height, width]
    return values


def _nearest_indices(size: int, new_size: int) -> NDArray[np.int64]:
    # In float32 like torch: in float64 the product can round to the other side of an integer.
    scale = np.float32(size) / np.float32(new_size)
    indices: NDArray[np.int64] = np.floor(np.arange(new_size, dtype=np.float32) * scale).astype(np.int64)
    return indices.clip(max=size - 1)


def _cubic_taps(size: int, new_size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the four source indices of each output position and their weights, both [new_size, 4]."""
    # Like torch's fused multiply-add kernels: round the scale and the position to float32, but not the product.
    # Other roundings change results by 1e-5 where neighbours differ by 1.
    scale = np.float32(size) / np.float32(new_size)
    position = (np.float64(scale) * (np.arange(new_size) + 0.5) - 0.5).astype(np.float32)
    first = np.floor(position)
    t = (position - first).astype(np.float64)
    weights = np.stack([cubic_kernel(distance, _A) for distance in (t + 1, t, 1 - t, 2 - t)], axis=1)
    indices = first.astype(np.int64)[:, None] + np.arange(-1, 3)
    return np.clip(indices, 0, size - 1), weights.astype(np.float32)


def cubic_kernel(distance: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Evaluate Keys' cubic kernel with parameter ``a``: two polynomials, for distances up to 1 and up to 2."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
