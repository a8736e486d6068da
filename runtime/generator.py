"""The random numbers that a seed stands for: torch's CPU generator of normal numbers, in NumPy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_BLOCK = 16
"""torch makes normals sixteen at a time; a draw of fewer takes another path."""

_TWO_PI = np.float32(2 * math.pi)


class Generator:
    """A stream of standard normals equal to ``torch.Generator("cpu").manual_seed(seed)``'s, each within 1e-6.

    Draws continue one stream, as repeated ``torch.randn(shape, generator=generator)`` calls do, and the
    size of each draw matters as it does there: a draw of 20 is not one of 16 and one of 4. The seed counts
    modulo 2**32, which is all that torch's Mersenne Twister takes of it; a negative one is its two's
    complement. The bound is against torch on a CPU with AVX2 or AVX-512: without them torch rounds angles
    otherwise, and differs from itself by up to 3e-6. Only float32 normals: uniforms, integers and torch's
    float64 draws are not here.
    """

    def __init__(self, seed: int) -> None:
        self._twister = np.random.RandomState(seed % 2**32)
        self._spare: float | None = None

    def randn(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Standard normals of the given shape, filled in row-major order."""
        size = math.prod(shape)
        values = self._many(size) if size >= _BLOCK else self._few(size)
        return values.reshape(shape)

    def _many(self, size: int) -> NDArray[np.float32]:
        normals = np.empty(size, np.float32)
        uniforms = self._uniforms(size)
        whole = size - size % _BLOCK
        normals[:whole] = _box_muller(uniforms[:whole])
        if whole < size:
            # The last sixteen are made anew, from fresh uniforms, over what the whole blocks left there.
            normals[-_BLOCK:] = _box_muller(self._uniforms(_BLOCK))
        return normals

    def _few(self, size: int) -> NDArray[np.float32]:
        """One at a time and in double precision; each second normal of a pair waits for the next small draw,
        however many large ones come between."""
        normals = np.empty(size, np.float32)
        for i in range(size):
            if self._spare is not None:
                normals[i], self._spare = self._spare, None
                continue
            angle, tail = 2 * math.pi * self._double(), self._double()
            radius = math.sqrt(-2 * math.log1p(-tail))
            normals[i], self._spare = radius * math.cos(angle), radius * math.sin(angle)
        return normals

    def _words(self, count: int) -> NDArray[np.uint32]:
        # Over the full range of 32 bits NumPy hands out the Twister's words as they are.
        return self._twister.randint(0, 2**32, count, np.uint32)

    def _uniforms(self, count: int) -> NDArray[np.float32]:
        """In [0, 1), of 24 bits."""
        return (self._words(count) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)

    def _double(self) -> float:
        """In [0, 1), of 53 bits; the first word is the upper half."""
        high, low = (int(word) for word in self._words(2))
        return ((high << 32 | low) & (2**53 - 1)) * 2**-53


def _box_muller(uniforms: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blocks of sixteen uniforms to as many normals: eight radii, then eight angles, make cosines, then
    sines.

    In float32 throughout: an angle rounded otherwise is off by more than the bound on a normal.
    """
    blocks = uniforms.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(-2 * np.log(1 - blocks[:, 0]))
    angle = _TWO_PI * blocks[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
