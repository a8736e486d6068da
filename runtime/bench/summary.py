"""Values that were measured again and again, in a few numbers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Summary = dict[str, float]
ENOUGH = 10
"""Values from which on a tenth of them says something."""


def summary(values: Iterable[float]) -> Summary:
    """``median``, ``min``, ``max`` and ``n``; of ten values and more also the percentiles ``p10`` and ``p90``.

    Six digits are kept: no clock here knows more.
    """
    found = np.fromiter(values, np.float64)
    result = {"median": digits(np.median(found)), "min": digits(found.min()), "max": digits(found.max())}
    if len(found) >= ENOUGH:
        low, high = np.percentile(found, (10, 90))
        result |= {"p10": digits(low), "p90": digits(high)}
    return {**result, "n": len(found)}


def digits(value: float) -> float:
    """The value to six significant digits, of which whole numbers keep all."""
    return float(value) if value == round(value) else float(f"{value:.6g}")
