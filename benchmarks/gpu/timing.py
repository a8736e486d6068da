"""Interleaved timing, so that other load on the machine affects all sides of a comparison alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

Result = TypeVar("Result")


def spread(values: Iterable[float], digits: int = 5) -> dict[str, float]:
    """Median, 10th and 90th percentile, and count."""
    ordered = sorted(values)

    def at(share: float) -> float:
        position = share * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)

    return {
        "median": round(statistics.median(ordered), digits),
        "p10": round(at(0.1), digits),
        "p90": round(at(0.9), digits),
        "n": len(ordered),
    }


def interleaved(sides: Mapping[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """Results of each side in each round, after one warm-up turn of each."""
    results: dict[str, list[Result]] = {name: [] for name in sides}
    for index in range(rounds + 1):
        for name, side in sides.items():
            value = side()
            if index:
                results[name].append(value)
    return results


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Spread over rounds of ``theirs`` divided by ``ours``."""
    return spread((their / our for our, their in zip(ours, theirs, strict=True)), 4)
