"""Rough pictures of latents by one small matrix, without the decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.interface import Float32Array

if TYPE_CHECKING:
    from PIL.Image import Image

_SIDE = 16
_PATCHES = (1, 2, 4, 8)
"""Sides of the constant patches of the latents to fit on: pictures have areas of all sizes."""
_REPEATS = 2


@dataclass(frozen=True, slots=True)
class Preview:
    """An affine map from the channels of a latent to a colour, fitted to the decoder."""

    matrix: NDArray[np.float32]
    """[C + 1, 3]: a row a channel, then the offset. Colours are in [0, 1]."""
    error: float
    """Root mean square of the difference from the decoded colours that it was fitted to."""

    @classmethod
    def fit(cls, decode: Callable[[Float32Array], Float32Array], channels: int) -> Preview:
        """Fit by least squares to decoded latents of noise in patches of several sizes.

        Args:
            decode: from latents [C, h, w] to an image [3, H, W], nominally in [-1, 1].
        """
        source = np.random.default_rng(0)
        inputs, colours = [], []
        for patch in _PATCHES * _REPEATS:
            small = source.standard_normal((channels, _SIDE // patch, _SIDE // patch)).astype(np.float32)
            latents = small.repeat(patch, 1).repeat(patch, 2)
            image = np.clip(decode(latents) / 2 + 0.5, 0, 1)
            factor = image.shape[1] // _SIDE
            # The colour of a latent is the mean of its pixels.
            means = image.reshape(3, _SIDE, factor, _SIDE, factor).mean((2, 4))
            inputs.append(latents.reshape(channels, -1).T)
            colours.append(means.reshape(3, -1).T)
        features = _with_offset(np.concatenate(inputs))
        expected = np.concatenate(colours)
        matrix = np.linalg.lstsq(features.astype(np.float64), expected.astype(np.float64), rcond=None)[0]
        error = float(np.sqrt(np.square(features @ matrix - expected).mean()))
        return cls(matrix.astype(np.float32), error)

    def image(self, latents: Float32Array) -> Image:
        """Make a picture [h, w] of latents [C, h, w], one pixel a latent."""
        from PIL import Image

        channels, h, w = latents.shape
        colours = _with_offset(latents.reshape(channels, -1).T) @ self.matrix
        pixels = (np.clip(np.nan_to_num(colours), 0, 1) * 255 + 0.5).astype(np.uint8)
        return Image.fromarray(pixels.reshape(h, w, 3))


def _with_offset(latents: Float32Array) -> Float32Array:
    """Append a column of ones to [n, C]."""
    return np.concatenate([latents, np.ones((len(latents), 1), np.float32)], axis=1)
