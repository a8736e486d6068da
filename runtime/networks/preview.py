"""Rough pictures of latents by one small matrix, without the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sd2rt.engines.bundle.manifest import PreviewMatrix
from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Float32Array

if TYPE_CHECKING:
    from PIL.Image import Image


class Preview:
    """Makes pictures by an affine map from the channels of a latent to a colour.

    Args:
        fitted: the map, fitted to the decoder.
    """

    def __init__(self, fitted: PreviewMatrix) -> None:
        self.matrix = np.array(fitted.matrix, np.float32)
        """[C + 1, 3]: a row a channel, then the offset. Colours are in [0, 1]."""
        self.error = fitted.error
        """Root mean square of the difference from the decoded colours that it was fitted to."""

    def __call__(self, latents: Float32Array) -> list[Image]:
        """Make pictures of latents [B, C, h, w], as callbacks get them, or of one image's [C, h, w].

        Raises:
            RequestError: they have another shape.
        """
        channels = len(self.matrix) - 1
        if np.ndim(latents) not in (3, 4) or latents.shape[-3] != channels:
            raise RequestError(
                f"got latents of shape {list(np.shape(latents))}: use [B, {channels}, h, w] or [{channels}, h, w]"
            )
        return [self.image(each) for each in (latents if latents.ndim == 4 else latents[None])]

    def image(self, latents: Float32Array) -> Image:
        """Make a picture [h, w] of latents [C, h, w], one pixel a latent."""
        from PIL import Image

        channels, h, w = latents.shape
        colours = latents.reshape(channels, -1).T @ self.matrix[:-1] + self.matrix[-1]
        pixels = (np.clip(np.nan_to_num(colours), 0, 1) * 255 + 0.5).astype(np.uint8)
        return Image.fromarray(pixels.reshape(h, w, 3))
