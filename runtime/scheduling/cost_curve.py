"""Cost of a lane's step by batch size, measured while it runs."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from statistics import median_low

_KEPT = 9
"""Measurements kept of each size. Their median ignores pauses, and follows a changed speed after five calls."""
_NEARLY_BEST = 1.05


class CostCurve:
    """Seconds c(b) of a call of b images: medians of the last measurements, interpolated between measured sizes."""

    def __init__(self) -> None:
        self._measured: dict[int, deque[float]] = {}
        self._median: dict[int, float] = {}
        self._sizes: list[int] = []

    def measure(self, batch: int, seconds: float) -> None:
        """Add a measurement."""
        if batch not in self._measured:
            self._measured[batch] = deque(maxlen=_KEPT)
            self._sizes = sorted(self._measured)
        self._measured[batch].append(seconds)
        self._median[batch] = median_low(self._measured[batch])

    @property
    def measured(self) -> dict[int, float]:
        """Seconds of each measured size, in ascending order of sizes."""
        return {size: self._median[size] for size in self._sizes}

    def seconds(self, batch: int) -> float | None:
        """Seconds of a call of ``batch`` images, or None if nothing was measured.

        Beyond the measured sizes, an image is assumed to cost as much as at the nearest one.
        """
        if not self._sizes:
            return None
        if (exact := self._median.get(batch)) is not None:
            return exact
        index = bisect_left(self._sizes, batch)
        if index in (0, len(self._sizes)):
            nearest = self._sizes[min(index, len(self._sizes) - 1)]
            return self._median[nearest] * batch / nearest
        below, above = self._sizes[index - 1], self._sizes[index]
        share = (batch - below) / (above - below)
        return (1 - share) * self._median[below] + share * self._median[above]

    def best_batch(self, limit: int) -> int:
        """Smallest measured size up to ``limit`` at which an image costs within 5 % of the least; else 1.

        Smaller batches finish their images sooner, so size is only worth what it saves.
        """
        each = {size: seconds / size for size, seconds in self.measured.items() if size <= limit}
        if not each:
            return 1
        least = min(each.values())
        return next(size for size, cost in each.items() if cost <= _NEARLY_BEST * least)
