"""Two things or more timed in turns, so that what the machine does meanwhile falls on all of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

Found = TypeVar("Found")


def spread(values: Iterable[float], digits: int = 5) -> dict[str, float]:
    """Median, 10th and 90th percentile, and how many there were."""
    found = sorted(values)

    def at(share: float) -> float:
        place = share * (len(found) - 1)
        low = int(place)
        high = min(low + 1, len(found) - 1)
        return found[low] + (found[high] - found[low]) * (place - low)

    return {
        "median": round(statistics.median(found), digits),
        "p10": round(at(0.1), digits),
        "p90": round(at(0.9), digits),
        "n": len(found),
    }


def interleaved(sides: Mapping[str, Callable[[], Found]], rounds: int) -> dict[str, list[Found]]:
    """What each side returned in each round, after one turn of each that does not count."""
    found: dict[str, list[Found]] = {name: [] for name in sides}
    for index in range(rounds + 1):
        for name, side in sides.items():
            value = side()
            if index:
                found[name].append(value)
    return found


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Of each round: how many times as long theirs takes."""
    return spread((their / own for own, their in zip(ours, theirs, strict=True)), 4)
