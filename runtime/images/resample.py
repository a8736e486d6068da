"""Resampling as ``torch.nn.functional.interpolate`` does it, where results have to agree with diffusers'."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_A = -0.75
"""Of the cubic kernel's family, the member that torch takes."""


def nearest(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """[C, H, W] to [C, height, width] as mode "nearest" does: row i is row floor(i * H / height)."""
    rows = _nearest_indices(values.shape[1], height)
    columns = _nearest_indices(values.shape[2], width)
    return values[:, rows[:, None], columns]


def bicubic(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """[H, W] to [height, width] as mode "bicubic" does, corners not aligned, without antialiasing.

    Cubic convolution (Keys, 1981): each value is made of 4 x 4 neighbours, and can be a little outside the
    range of those given. Beyond an edge, the edge is repeated.
    """
    indices, weights = _cubic_taps(values.shape[1], width)
    values = (values[:, indices] * weights).sum(2)  # [H, width, 4] -> [H, width]
    indices, weights = _cubic_taps(values.shape[0], height)
    values = (values[indices] * weights[:, :, None]).sum(1)  # [height, 4, width] -> [height, width]
    return values


def _nearest_indices(given: int, wanted: int) -> NDArray[np.int64]:
    # In float32, as torch: the product can fall on the other side of a whole number.
    scale = np.float32(given) / np.float32(wanted)
    indices: NDArray[np.int64] = np.floor(np.arange(wanted, dtype=np.float32) * scale).astype(np.int64)
    return indices.clip(max=given - 1)


def _cubic_taps(given: int, wanted: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each wanted position, the four given ones that make it, and their weights; both [wanted, 4]."""
    # The scale and the position are rounded to float32 and the product is not, as in torch's kernels
    # (a fused multiply-add): other roundings differ from it by 1e-5 where neighbours differ by 1.
    scale = np.float32(given) / np.float32(wanted)
    position = (np.float64(scale) * (np.arange(wanted) + 0.5) - 0.5).astype(np.float32)
    first = np.floor(position)
    t = (position - first).astype(np.float64)
    weights = np.stack([_far(t + 1), _near(t), _near(1 - t), _far(2 - t)], axis=1)
    indices = first.astype(np.int64)[:, None] + np.arange(-1, 3)
    return np.clip(indices, 0, given - 1), weights.astype(np.float32)


def _near(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The kernel at distances up to 1."""
    return ((_A + 2) * x - (_A + 3)) * x * x + 1


def _far(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The kernel at distances from 1 to 2."""
    return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
