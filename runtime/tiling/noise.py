"""Fresh noise for an image that is made in tiles: every tile cuts its own from the same draws."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sd2rt.runtime.rng.select import make_generator
from sd2rt.runtime.tiling.tiling import Box

# Apart from the seeds of a request's other images, which count up from its own.
_STEP_SEEDS = 0x9E3779B1


class ImageNoise:
    """The noise of each draw of one image, [C, H, W], whichever tile comes to it first.

    A draw is a function of the seed and its number, so that none need be kept for tiles that come later; those
    of a batch come together, and find the last ones made.
    """

    def __init__(self, seed: int, shape: tuple[int, ...], rng: str = "cpu") -> None:
        self._seed = seed
        self._rng = rng
        self._shape = shape
        self.draw = lru_cache(maxsize=2)(self._draw)

    def _draw(self, number: int) -> NDArray[np.float32]:
        return make_generator(self._rng, self._seed + _STEP_SEEDS * (number + 1)).randn(self._shape)


class TileGenerator:
    """Stands in for an image's own generator where a tile is made: its draws agree with its neighbours'.

    Tiles with noise of their own would become different pictures, and blur where they are blended.
    """

    def __init__(self, noise: ImageNoise, box: Box) -> None:
        self._noise = noise
        self._box = box
        self._drawn = 0

    def randn(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The tile's piece of the image's next draw; ``shape`` is the tile's, [C, h, w]."""
        piece = self._box.cut(self._noise.draw(self._drawn))
        assert piece.shape == shape
        self._drawn += 1
        return piece
