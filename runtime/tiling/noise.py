"""Step noise of tiled images: each tile crops it from draws for the whole image."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sd2rt.runtime.rng.brownian_path import BrownianPath
from sd2rt.runtime.rng.select import make_generator
from sd2rt.runtime.tiling.tiling import Box

_STEP_SEED_STRIDE = 0x9E3779B1
"""Distance between the seeds of two draws; far from the consecutive seeds of a request's images."""


class ImageNoise:
    """Noise of one image, [C, H, W], by the number of the draw.

    A draw depends only on the seed and its number, so it can be repeated for tiles that are denoised later. The last
    two draws are cached, for tiles of one batch.
    """

    def __init__(self, seed: int, shape: tuple[int, ...], rng: str = "cpu") -> None:
        self._seed = seed
        self._rng = rng
        self._shape = shape
        self.draw = lru_cache(maxsize=2)(self._draw)

    def _draw(self, number: int) -> NDArray[np.float32]:
        return make_generator(self._rng, self._seed + _STEP_SEED_STRIDE * (number + 1)).randn(self._shape)


class TileGenerator:
    """Generator of one tile's noise, consistent with its neighbours.

    With independent noise, tiles would become different images and blur where they are blended.
    """

    def __init__(self, noise: ImageNoise, box: Box) -> None:
        self._noise = noise
        self._box = box
        self._draws = 0

    def randn(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Crop the tile, of shape [C, h, w], from the image's next draw."""
        crop = self._box.cut(self._noise.draw(self._draws))
        assert crop.shape == shape
        self._draws += 1
        return crop


class TilePath:
    """Part of an image's Brownian path that belongs to one tile, or to the only one."""

    def __init__(self, path: BrownianPath, box: Box) -> None:
        self._path = path
        self._box = box

    def noise(self, level: float, following: float) -> NDArray[np.float32]:
        """Crop the tile's noise of a step between two noise levels."""
        return self._box.cut(self._path.noise(level, following))
