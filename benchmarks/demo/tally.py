"""Count correct cases, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_Z = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""


def wilson(right: int, of: int) -> tuple[float, float]:
    """95 % interval of a share: Wilson, Probable inference (1927). ValueError for ``of`` below 1."""
    if of < 1:
        raise ValueError(f"a share of {of} has no interval")
    share, square = right / of, _Z * _Z / of
    middle = (share + square / 2) / (1 + square)
    reach = _Z / (1 + square) * math.sqrt(share * (1 - share) / of + square / (4 * of))
    return max(0.0, middle - reach), min(1.0, middle + reach)


@dataclass(slots=True)
class Tally:
    """Correct and wrong cases by criterion, and values to average."""

    flags: dict[str, list[bool]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, verdict: Mapping[str, Sequence[bool]]) -> None:
        """Add the flags of a verdict."""
        for criterion, flags in verdict.items():
            self.flags.setdefault(criterion, []).extend(map(bool, flags))

    def measure(self, criterion: str, value: float) -> None:
        """Add a value to a mean."""
        self.values.setdefault(criterion, []).append(value)

    def result(self) -> dict[str, Any]:
        """Return ``counts``, each with its share and interval, and ``means``."""
        counts = {}
        for criterion, flags in self.flags.items():
            right, of = sum(flags), len(flags)
            low, high = wilson(right, of)
            counts[criterion] = {
                "right": right,
                "of": of,
                "share": round(right / of, 4),
                "low": round(low, 4),
                "high": round(high, 4),
            }
        means = {criterion: round(sum(values) / len(values), 4) for criterion, values in self.values.items()}
        return {"counts": counts, "means": means}
