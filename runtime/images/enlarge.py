"""Enlarge latents like ``torch.nn.functional.interpolate``, for a second pass over them."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sd2rt.runtime.images.resample import bicubic, cubic_kernel, nearest

_A = -0.5
"""Parameter of the cubic kernel with antialiasing, as in torch and Pillow."""


def enlarge_latents(
    latents: NDArray[np.float32],
    height: int,
    width: int,
    method: Literal["bilinear", "nearest", "nearest-exact", "bicubic", "bicubic-antialiased"],
) -> NDArray[np.float32]:
    """Enlarge [C, h, w] to [C, height, width] in one of torch's modes, without aligned corners.

    Antialiasing changes nothing when bilinear interpolation enlarges, and the kernel of bicubic interpolation.
    """
    if method == "nearest":
        return nearest(latents, height, width)
    if method == "bicubic":
        return np.stack([bicubic(channel, height, width) for channel in latents])
    rows, columns = (
        _matrix(old, new, method) for old, new in zip(latents.shape[1:], (height, width), strict=True)
    )
    return (rows @ latents.astype(np.float64) @ columns.T).astype(np.float32)


def _matrix(size: int, new_size: int, method: str) -> NDArray[np.float64]:
    """Share of each old value in each new one, [new, old]."""
    position = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    distance = np.abs(position.clip(0, size - 1)[:, None] - np.arange(size))
    if method == "nearest-exact":
        shares = np.zeros((new_size, size))
        shares[np.arange(new_size), np.floor(position + 0.5).astype(int).clip(0, size - 1)] = 1
        return shares
    if method == "bilinear":
        return np.asarray(np.maximum(1 - distance, 0))
    distance = np.abs(position[:, None] - np.arange(size))
    shares = cubic_kernel(distance, _A)
    normalised: NDArray[np.float64] = shares / shares.sum(1, keepdims=True)
    return normalised
