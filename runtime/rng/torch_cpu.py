"""PyTorch's CPU generator of normal numbers, reproduced in NumPy."""

from __future__ import annotations

import math
import random

import numpy as np
from numpy.typing import NDArray

_BLOCK = 16
"""PyTorch makes normals in blocks of sixteen; smaller draws use another algorithm."""

_TWO_PI = np.float32(2 * math.pi)

_STATE_WORDS = 624


class Generator:
    """Standard normals equal to those of ``torch.Generator("cpu").manual_seed(seed)``, within 1e-6.

    Draws continue one stream, like repeated calls of ``torch.randn(shape, generator=generator)``. As in PyTorch the
    size of each draw matters: a draw of 20 differs from one of 16 and one of 4. The seed is taken modulo 2**32, as
    PyTorch's Mersenne Twister does; a negative seed is its two's complement. The bound holds for PyTorch on CPUs with
    AVX2 or AVX-512; without them PyTorch rounds angles differently, and its own results differ by up to 3e-6. Only
    float32 normals are supported: no uniforms, integers or float64.
    """

    def __init__(self, seed: int) -> None:
        self._twister = _twister(seed % 2**32)
        self._spare: float | None = None

    def randn(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Draw standard normals of this shape, in row-major order."""
        size = math.prod(shape)
        values = self._draw_blocks(size) if size >= _BLOCK else self._draw_few(size)
        return values.reshape(shape)

    @staticmethod
    def continues(size: int) -> bool:
        """Return whether draws of this size continue each other, so that several can be made as one."""
        return size % _BLOCK == 0

    def _draw_blocks(self, size: int) -> NDArray[np.float32]:
        normals = np.empty(size, np.float32)
        words = self._words(size)
        whole = size - size % _BLOCK
        _box_muller(words[:whole], normals[:whole])
        if whole < size:
            # Like PyTorch, draw the last sixteen from new words, overwriting the end of the whole blocks.
            _box_muller(self._words(_BLOCK), normals[-_BLOCK:])
        return normals

    def _draw_few(self, size: int) -> NDArray[np.float32]:
        """Draw one by one in double precision.

        The second normal of a pair is kept for the next small draw, even if large draws come between.
        """
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
        """Draw the Mersenne Twister's next 32-bit words."""
        return np.frombuffer(self._twister.randbytes(4 * count), "<u4")

    def _double(self) -> float:
        """Draw a 53-bit uniform in [0, 1); the first word is the upper half."""
        high, low = (int(word) for word in self._words(2))
        return ((high << 32 | low) & (2**53 - 1)) * 2**-53


def _twister(seed: int) -> random.Random:
    """Set Python's Mersenne Twister to the state of PyTorch's after ``seed``.

    NumPy's would do, but importing ``numpy.random`` takes 25 ms, ten times as long as drawing an image's noise.
    """
    word, state = seed, [seed]
    for i in range(1, _STATE_WORDS):
        word = (1812433253 * (word ^ word >> 30) + i) & 0xFFFFFFFF
        state.append(word)
    twister = random.Random(0)
    twister.setstate((3, (*state, _STATE_WORDS), None))
    return twister


def _box_muller(words: NDArray[np.uint32], normals: NDArray[np.float32]) -> None:
    """Transform blocks of sixteen words to normals: eight radii and eight angles give eight cosines and eight sines.

    All in float32, as in PyTorch: other rounding of an angle would exceed the bound on the normals.
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
