"""Summarise repeated measurements."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Summary = dict[str, float]
_MIN_FOR_PERCENTILES = 10
"""With fewer values, the 10th and 90th percentiles mean little."""


def summary(values: Iterable[float]) -> Summary:
    """Return ``median``, ``min``, ``max`` and ``n``; from ten values on also percentiles ``p10`` and ``p90``.

    Values keep six digits, more than any clock here resolves.
    """
    array = np.fromiter(values, np.float64)
    result = {"median": digits(np.median(array)), "min": digits(array.min()), "max": digits(array.max())}
    if len(array) >= _MIN_FOR_PERCENTILES:
        low, high = np.percentile(array, (10, 90))
        result |= {"p10": digits(low), "p90": digits(high)}
    return {**result, "n": len(array)}


def digits(value: float) -> float:
    """Round to six significant digits; whole numbers are not rounded."""
    return float(value) if value == round(value) else float(f"{value:.6g}")
