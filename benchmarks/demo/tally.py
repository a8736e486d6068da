"""How many of how many were right, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_Z = 1.959964
"""Standard deviations that 95 % of a normal distribution are within, to both sides."""


def wilson(right: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share: Wilson, Probable inference (1927). Raises ValueError for ``of`` below 1."""
    if of < 1:
        raise ValueError(f"a share of {of} has no interval")
    share, square = right / of, _Z * _Z / of
    middle = (share + square / 2) / (1 + square)
    reach = _Z / (1 + square) * math.sqrt(share * (1 - share) / of + square / (4 * of))
    return max(0.0, middle - reach), min(1.0, middle + reach)


@dataclass(slots=True)
class Tally:
    """Counts of right ones by what is counted, and values whose means are told."""

    flags: dict[str, list[bool]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, verdict: Mapping[str, Sequence[bool]]) -> None:
        """Count what a verdict says."""
        for what, flags in verdict.items():
            self.flags.setdefault(what, []).extend(map(bool, flags))

    def measure(self, what: str, value: float) -> None:
        """Take a value into a mean."""
        self.values.setdefault(what, []).append(value)

    def result(self) -> dict[str, Any]:
        """``counts``, each with its share and interval, and ``means``."""
        counts = {}
        for what, flags in self.flags.items():
            right, of = sum(flags), len(flags)
            low, high = wilson(right, of)
            counts[what] = {
                "right": right,
                "of": of,
                "share": round(right / of, 4),
                "low": round(low, 4),
                "high": round(high, 4),
            }
        means = {what: round(sum(values) / len(values), 4) for what, values in self.values.items()}
        return {"counts": counts, "means": means}
