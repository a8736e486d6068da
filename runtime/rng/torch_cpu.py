"""The random numbers that a seed stands for: torch's CPU generator of normal numbers, in NumPy."""

from __future__ import annotations

import math
import random

import numpy as np
from numpy.typing import NDArray

_BLOCK = 16
"""torch makes normals sixteen at a time; a draw of fewer takes another path."""

_TWO_PI = np.float32(2 * math.pi)

_STATE_WORDS = 624


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
        self._twister = _twister(seed % 2**32)
        self._spare: float | None = None

    def randn(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Standard normals of the given shape, filled in row-major order."""
        size = math.prod(shape)
        values = self._many(size) if size >= _BLOCK else self._few(size)
        return values.reshape(shape)

    def _many(self, size: int) -> NDArray[np.float32]:
        normals = np.empty(size, np.float32)
        words = self._words(size)
        whole = size - size % _BLOCK
        _box_muller(words[:whole], normals[:whole])
        if whole < size:
            # The last sixteen are made anew, from fresh words, over what the whole blocks left there.
            _box_muller(self._words(_BLOCK), normals[-_BLOCK:])
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
        """The Twister's next words of 32 bits."""
        return np.frombuffer(self._twister.randbytes(4 * count), "<u4")

    def _double(self) -> float:
        """In [0, 1), of 53 bits; the first word is the upper half."""
        high, low = (int(word) for word in self._words(2))
        return ((high << 32 | low) & (2**53 - 1)) * 2**-53


def _twister(seed: int) -> random.Random:
    """Python's own Mersenne Twister, in the state that torch's has after ``seed``.

    NumPy's would be as good, but ``numpy.random`` takes 25 ms to import, ten times what an image's noise takes.
    """
    word, state = seed, [seed]
    for i in range(1, _STATE_WORDS):
        word = (1812433253 * (word ^ word >> 30) + i) & 0xFFFFFFFF
        state.append(word)
    twister = random.Random(0)
    twister.setstate((3, (*state, _STATE_WORDS), None))
    return twister


def _box_muller(words: NDArray[np.uint32], normals: NDArray[np.float32]) -> None:
    """Blocks of sixteen words into as many normals: eight radii, then eight angles, make cosines, then sines.

    In float32 throughout: an angle rounded otherwise is off by more than the bound on a normal.
    """
    uniforms = (words & 0xFFFFFF).astype(np.float32)
    uniforms *= np.float32(2**-24)
    source, target = (array.reshape(-1, 2, _BLOCK // 2) for array in (uniforms, normals))
    radius = np.subtract(np.float32(1), source[:, 0])
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle = _TWO_PI * source[:, 1]
    np.multiply(radius, np.cos(angle), out=target[:, 0])
    np.multiply(radius, np.sin(angle), out=target[:, 1])
