"""PyTorch's CUDA generator of normal numbers, reproduced in NumPy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_BLOCK = 256
"""Threads per block of PyTorch's kernel; every thread has its own stream."""

_LANES = 4
"""Normals that a thread makes from one counter."""

_CHUNK = 3 << 12
"""Counters processed at once: few enough to stay in the CPU's cache for ten rounds."""

_ROUNDS = 10
_MULTIPLIERS = np.array([[0xCD9E8D57], [0xD2511F53]], np.uint64)
_WEYL = 0x9E3779B9, 0xBB67AE85
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)

_UNIT = np.float32(2**-32)
_TURN = _UNIT * np.float32(2 * math.pi)

Words = NDArray[np.uint64]
"""32-bit words, stored in 64 bits for their products."""


class PhiloxGenerator:
    """Standard normals like those of ``torch.Generator("cuda").manual_seed(seed)``: Philox 4x32-10.

    Normals follow cuRAND (``curand_normal4``: two Box-Muller pairs, sines before cosines), in the order of PyTorch's
    kernel. Thread i draws from subsequence i of the seed. If a draw has no more values than the GPU has threads,
    thread i makes only value i, so all GPUs draw the same. In larger draws each thread makes several values,
    ``threads`` apart. The next draw continues after the counter of the busiest thread.

    A GPU computes sine and cosine to about 1e-6; here they are exact to float32 rounding. The seed is taken modulo
    2**64; a negative seed is its two's complement. Only float32 normals are supported.

    Philox: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).

    Args:
        seed: seed of the stream.
        threads: threads of the GPU to reproduce, a multiple of 256: multiprocessors times threads per multiprocessor.
    """

    def __init__(self, seed: int, threads: int) -> None:
        seed %= 2**64
        self._key = seed & 0xFFFFFFFF, seed >> 32
        self._threads = threads
        self._counter = 0

    def randn(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Draw standard normals of this shape, in row-major order."""
        normals = np.empty(math.prod(shape), np.float32)
        threads = min(self._threads, -(-normals.size // _BLOCK) * _BLOCK)
        for start in range(0, normals.size, _LANES * threads or 1):
            self._draw_counter(normals[start : start + _LANES * threads], threads)
            self._counter += 1
        return normals.reshape(shape)

    def _draw_counter(self, normals: NDArray[np.float32], threads: int) -> None:
        """Draw every thread's four normals from the current counter; a thread's lie ``threads`` apart."""
        for first in range(0, min(threads, normals.size), _CHUNK):
            last = min(first + _CHUNK, threads, normals.size)
            words = philox(self._counter, np.arange(first, last, dtype=np.uint64), self._key)
            for lane in range(0, _LANES, 2):
                slices = [
                    slice(first + shift * threads, last + shift * threads) for shift in (lane, lane + 1)
                ]
                sines, cosines = (normals[part] for part in slices)
                if sines.size:
                    _box_muller(words[lane], words[lane + 1], sines, cosines)


def philox(counter: int, sequences: Words, key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Compute the four words of each of n subsequences: four arrays [n].

    Args:
        counter: 64-bit counter.
        sequences: 64-bit numbers of the subsequences, [n].
        key: lower and upper half of the seed.
    """
    even, odd, product = (np.empty((2, len(sequences)), np.uint64) for _ in range(3))
    even[0], odd[0] = counter & 0xFFFFFFFF, counter >> 32
    np.bitwise_and(sequences, _LOW, out=even[1])
    np.right_shift(sequences, _HALF, out=odd[1])
    low, high = key
    for _ in range(_ROUNDS):
        # Each word is updated with the product of the other.
        np.multiply(even[::-1], _MULTIPLIERS, out=product)
        np.right_shift(product, _HALF, out=even)
        even ^= odd
        even ^= np.array([[low], [high]], np.uint64)
        np.bitwise_and(product, _LOW, out=odd)
        low, high = (low + _WEYL[0]) & 0xFFFFFFFF, (high + _WEYL[1]) & 0xFFFFFFFF
    return even[0], odd[0], even[1], odd[1]


def _box_muller(
    radii: Words, angles: Words, sines: NDArray[np.float32], cosines: NDArray[np.float32]
) -> None:
    """Transform pairs of words to pairs of normals; ``cosines`` may be shorter than ``sines``, or empty."""
    radius = radii[: sines.size].astype(np.float32)
    radius *= _UNIT
    radius += _UNIT / 2
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle = angles[: sines.size].astype(np.float32)
    angle *= _TURN
    angle += _TURN / 2
    np.multiply(radius, np.sin(angle), out=sines)
    if cosines.size:
        np.multiply(radius[: cosines.size], np.cos(angle[: cosines.size]), out=cosines)
