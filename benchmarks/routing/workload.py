"""Requests to a fleet: several bundles and sizes, at random times."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeVar

from benchmarks.scheduling.workload import H200, OBJECTIVE, STEPS

Traffic = Literal["poisson", "bursty"]
_Key = TypeVar("_Key", bound=Hashable)
Lane = tuple[str, int]
"""Bundle, and pixels of a side."""

BUNDLES = {"a": 0.40, "b": 0.25, "c": 0.15, "d": 0.10, "e": 0.06, "f": 0.04}
"""Shares of requests."""
SIZES = {512: 0.7, 768: 0.3}
"""Shares of requests. A step costs in proportion to pixels."""
KEEP = 2
"""Bundles that a device has loaded at once."""
LOAD_SECONDS = 5.0
"""Time until a bundle is loaded. The device works on for others meanwhile."""
BURST, QUIET = 3.0, 1 / 3
"""Rates of bursty traffic, in times of its mean."""
BURST_SECONDS, QUIET_SECONDS = 5.0, 15.0
"""Mean times of both, whose rates have the mean 1."""


def factor(size: int) -> float:
    """Cost of a step relative to the curve's, which is for the smallest size."""
    return (size / min(SIZES)) ** 2


CURVES = {size: {batch: seconds * factor(size) for batch, seconds in H200.items()} for size in SIZES}
"""Seconds of a step by batch, by size."""
SHARED_SECONDS = {
    size: min(seconds / batch for batch, seconds in curve.items()) for size, curve in CURVES.items()
}
"""Seconds of an image's step in the batch that costs least, by size."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One image. Requests are compared by identity."""

    at: float
    bundle: str
    size: int
    steps: int

    @property
    def lane(self) -> Lane:
        return self.bundle, self.size

    @property
    def own_seconds(self) -> float:
        """Its time alone on a device that has its bundle."""
        return self.steps * CURVES[self.size][1]

    @property
    def shared_seconds(self) -> float:
        """Its share of a device's time in the best batches."""
        return self.steps * SHARED_SECONDS[self.size]

    @property
    def objective(self) -> float:
        return self.at + OBJECTIVE * self.own_seconds


def draw(
    count: int, rate: float, devices: int, traffic: Traffic, seed: int, mixed: bool = True
) -> list[Request]:
    """Draw requests in order of time.

    Args:
        rate: in times of what all devices can do one image at a time.
        mixed: several bundles and sizes; else one of each.
    """
    drawn = random.Random(seed)
    mean = sum(STEPS) / len(STEPS) * sum(share * CURVES[size][1] for size, share in SIZES.items())
    if not mixed:
        mean = sum(STEPS) / len(STEPS) * H200[1]
    arrivals = (_bursty if traffic == "bursty" else _poisson)(drawn, rate * devices / mean)
    bundle, size = _choice(drawn, BUNDLES), _choice(drawn, SIZES)
    return [
        Request(
            at,
            bundle() if mixed else next(iter(BUNDLES)),
            size() if mixed else min(SIZES),
            drawn.choice(STEPS),
        )
        for at, _ in zip(arrivals, range(count), strict=False)
    ]


def _choice(drawn: random.Random, shares: Mapping[_Key, float]) -> Callable[[], _Key]:
    keys, sums = list(shares), list(accumulate(shares.values()))
    return lambda: drawn.choices(keys, cum_weights=sums)[0]


def _poisson(drawn: random.Random, rate: float) -> Iterator[float]:
    now = 0.0
    while True:
        now += drawn.expovariate(rate)
        yield now


def _bursty(drawn: random.Random, rate: float) -> Iterator[float]:
    """Poisson arrivals whose rate changes between a burst's and a quiet time's, for random times."""
    now, bursting = 0.0, False
    while True:
        end = now + drawn.expovariate(1 / (BURST_SECONDS if bursting else QUIET_SECONDS))
        while (now := now + drawn.expovariate(rate * (BURST if bursting else QUIET))) < end:
            yield now
        # What is left of an exponential time is distributed as the whole.
        now, bursting = end, not bursting
