"""Fit the matrix of previews, which maps the channels of a latent to a colour, to a decoder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sd2rt.engines.bundle.manifest import PreviewMatrix
from sd2rt.engines.interface import Float32Array

_SIDE = 16
_PATCHES = (4, 8, 4, 8)
"""Sides of the constant patches of the latents to fit on.

On images of the demo, whose colours deviate by 0.34, the matrix is off by 0.17 in the root mean square. Smaller
patches as well make that 0.18; a matrix fitted to these very images has 0.11.
"""
_DECIMALS = 4
"""Finer than the 255 levels of a colour, and coarser than the rounding in which CPUs differ."""


def fit_preview(decode: Callable[[Float32Array], Float32Array], channels: int) -> PreviewMatrix:
    """Fit by least squares to four decoded latents of noise in patches.

    Args:
        decode: from latents [C, 16, 16], as a sampler returns them, to an image [3, H, W], nominally in [-1, 1].
        channels: C.
    """
    source = np.random.default_rng(0)
    inputs, colours = [], []
    for patch in _PATCHES:
        small = source.standard_normal((channels, _SIDE // patch, _SIDE // patch)).astype(np.float32)
        latents = small.repeat(patch, 1).repeat(patch, 2)
        # A decoder that overflows has a matrix all the same: the images themselves report it.
        image = np.nan_to_num(np.clip(decode(latents) / 2 + 0.5, 0, 1), nan=0.5)
        factor = image.shape[1] // _SIDE
        # The colour of a latent is the mean of its pixels.
        means = image.reshape(3, _SIDE, factor, _SIDE, factor).mean((2, 4))
        inputs.append(latents.reshape(channels, -1).T)
        colours.append(means.reshape(3, -1).T)
    features = np.pad(np.concatenate(inputs), ((0, 0), (0, 1)), constant_values=1).astype(np.float64)
    expected = np.concatenate(colours).astype(np.float64)
    matrix = np.linalg.lstsq(features, expected, rcond=None)[0]
    error = np.sqrt(np.square(features @ matrix - expected).mean())
    rows = [tuple(_rounded(value) for value in row) for row in matrix]
    return PreviewMatrix(matrix=tuple((red, green, blue) for red, green, blue in rows), error=_rounded(error))


def _rounded(value: np.float64) -> float:
    # Without the sign of a negative zero.
    return round(float(value), _DECIMALS) + 0.0
