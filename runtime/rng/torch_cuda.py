"""The random numbers that a seed stands for on a GPU: torch's CUDA generator of normal numbers, in NumPy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_BLOCK = 256
"""Threads of a block of torch's kernel; every thread has a stream of its own."""

_LANES = 4
"""Normals that a thread makes of one counter."""

_CHUNK = 3 << 12
"""Counters worked on at once: small enough that ten rounds over them stay in the cache."""

_ROUNDS = 10
_MULTIPLIERS = np.array([[0xCD9E8D57], [0xD2511F53]], np.uint64)
_WEYL = 0x9E3779B9, 0xBB67AE85
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)

_UNIT = np.float32(2**-32)
_TURN = _UNIT * np.float32(2 * math.pi)

Words = NDArray[np.uint64]
"""Of 32 bits, held in 64 for their products."""


class PhiloxGenerator:
    """A stream of standard normals as ``torch.Generator("cuda").manual_seed(seed)``'s: Philox 4x32-10.

    Normals follow cuRAND (``curand_normal4``: two Box-Muller pairs, sines before cosines), and their order is
    that of torch's kernel. Thread i draws from subsequence i of the seed; as long as a draw has no more values
    than the GPU has threads, thread i makes value i alone, so that all GPUs draw the same. In a larger one each
    thread makes several, ``threads`` apart. Every draw leaves off where its busiest thread does, and the next
    one goes on from there.

    A GPU takes its sine and cosine from a table that is good to about 1e-6; here they are exact to float32's
    last bits. The seed counts modulo 2**64; a negative one is its two's complement. Only float32 normals.

    Philox: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).

    Args:
        seed: of the stream.
        threads: of the GPU that is reproduced, a multiple of 256: its multiprocessors times the threads that
            each holds.
    """

    def __init__(self, seed: int, threads: int) -> None:
        seed %= 2**64
        self._key = seed & 0xFFFFFFFF, seed >> 32
        self._threads = threads
        self._counter = 0

    def randn(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Standard normals of the given shape, filled in row-major order."""
        normals = np.empty(math.prod(shape), np.float32)
        threads = min(self._threads, -(-normals.size // _BLOCK) * _BLOCK)
        for start in range(0, normals.size, _LANES * threads or 1):
            self._round(normals[start : start + _LANES * threads], threads)
            self._counter += 1
        return normals.reshape(shape)

    def _round(self, normals: NDArray[np.float32], threads: int) -> None:
        """What every thread makes of one counter: its four normals lie ``threads`` apart."""
        for first in range(0, min(threads, normals.size), _CHUNK):
            last = min(first + _CHUNK, threads, normals.size)
            words = philox(self._counter, np.arange(first, last, dtype=np.uint64), self._key)
            for lane in range(0, _LANES, 2):
                places = [
                    slice(first + shift * threads, last + shift * threads) for shift in (lane, lane + 1)
                ]
                sines, cosines = (normals[place] for place in places)
                if sines.size:
                    _box_muller(words[lane], words[lane + 1], sines, cosines)


def philox(counter: int, sequences: Words, key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """The four words of each of the subsequences [n], of 64 bits as the counter is: [n] each.

    ``key`` is the seed's lower and upper half.
    """
    even, odd, product = (np.empty((2, len(sequences)), np.uint64) for _ in range(3))
    even[0], odd[0] = counter & 0xFFFFFFFF, counter >> 32
    np.bitwise_and(sequences, _LOW, out=even[1])
    np.right_shift(sequences, _HALF, out=odd[1])
    low, high = key
    for _ in range(_ROUNDS):
        # Each word goes on by the other one's product.
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
    """Pairs of words into pairs of normals; of the last ones, or of all, only the first may be wanted."""
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
