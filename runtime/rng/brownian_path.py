"""Noise of SDE samplers as increments of one Brownian path, which its seed determines as in torchsde."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from sd2rt.runtime.rng.select import make_generator

_DIGITS = 6
"""torchsde's BrownianTree rounds places to these decimals; below, the path is a line."""
_POOL_SIZE = 24
_SEEDS = 4
"""Seeds that torchsde draws for each interval; the first is that of the middle."""


@dataclass(slots=True)
class _Interval:
    """A dyadic part of the path."""

    start: float
    end: float
    key: int
    """Number of the interval within its depth."""
    value: NDArray[np.float64]
    """At its start; in float64, so that a difference of near values is as exact as their increments."""
    increment: NDArray[np.float32]


class BrownianPath:
    """The path of torchsde's ``BrownianTree`` between two noise levels, with float32 values, within 5e-6.

    The value at a place follows from those at the ends of an interval around it, which is halved until the place is
    reached: about 24 times, with a seed for every half. So places can be asked for in any order.
    """

    def __init__(self, rng: str, seed: int, shape: tuple[int, ...], lowest: float, highest: float) -> None:
        self._rng, self._shape = rng, shape
        # torchsde takes no negative seeds; torch's are two's complements.
        self._entropy = seed % 2**64
        whole = self._normals(self._seeds(3)[0]) * np.float32(sqrt(highest - lowest))
        zero = np.zeros(shape)
        self._descent = [_Interval(round(lowest, _DIGITS), round(highest, _DIGITS), 0, zero, whole)]
        """The last place's intervals, each half of the one before; the next place shares the first ones."""
        self._latest: list[tuple[float, NDArray[np.float64]]] = []

    def noise(self, level: float, following: float) -> NDArray[np.float32]:
        """Standard normals of a step between two levels: the path's increment over the root of the distance."""
        difference = self._value(following) - self._value(level)
        return (difference / sqrt(abs(level - following))).astype(np.float32)

    def _value(self, place: float) -> NDArray[np.float64]:
        """Value of the path at a place, relative to its start."""
        root = self._descent[0]
        place = round(min(max(place, root.start), root.end), _DIGITS)
        for known, value in self._latest:
            if known == place:
                return value
        value = self._descend(place)
        # A step begins where the last one ended, and may be asked for twice.
        self._latest = [*self._latest[-2:], (place, value)]
        return value

    def _descend(self, place: float) -> NDArray[np.float64]:
        while not self._descent[-1].start <= place <= self._descent[-1].end:
            self._descent.pop()
        while True:
            interval = self._descent[-1]
            if place == interval.start:
                return interval.value
            if place == interval.end:
                return interval.value + interval.increment
            middle = round(0.5 * (interval.end + interval.start), _DIGITS)
            left, right = middle - interval.start, interval.end - middle
            share = 1 / (interval.end - interval.start)
            depth = len(self._descent) - 1
            normals = self._normals(self._seeds(_SEEDS, interval.key, depth)[0])
            first = np.float32(left) * interval.increment * np.float32(share)
            first = first + np.float32(sqrt(left * right * share)) * normals
            if place <= middle:
                half = _Interval(interval.start, middle, 2 * interval.key, interval.value, first)
            else:
                half = _Interval(
                    middle,
                    interval.end,
                    2 * interval.key + 1,
                    interval.value + first,
                    interval.increment - first,
                )
            self._descent.append(half)

    def _seeds(self, count: int, *spawn_key: int) -> NDArray[np.uint32]:
        # Imported on use: numpy.random takes 25 ms, and few requests need it.
        from numpy.random import SeedSequence

        sequence = SeedSequence(self._entropy, spawn_key=spawn_key, pool_size=_POOL_SIZE)
        seeds: NDArray[np.uint32] = sequence.generate_state(count).astype(np.uint32)
        return seeds

    def _normals(self, seed: np.uint32) -> NDArray[np.float32]:
        return make_generator(self._rng, int(seed)).randn(self._shape)
