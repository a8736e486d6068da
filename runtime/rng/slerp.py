"""Noise between that of two seeds."""

from __future__ import annotations

import math

import numpy as np

from sd2rt.engines.interface import Float32Array

_PARALLEL = 0.9995
"""Cosine from which two vectors count as one direction: the sine of their angle is no good divisor."""


def slerp(first: Float32Array, second: Float32Array, strength: float) -> Float32Array:
    """The noise ``strength`` of the way from ``first``, at 0, to ``second``, at 1, of the same shape.

    Along the great circle, taking each noise as one vector: halfway is as long as its ends, where the mean of
    two normals would be too short for noise. Parallel ones are mixed in a straight line. The ends are exact.
    """
    if strength in (0, 1):
        return second if strength else first
    a, b = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
    cosine = float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
    if abs(cosine) > _PARALLEL:
        return (first * np.float32(1 - strength) + second * np.float32(strength)).astype(np.float32)
    angle = math.acos(cosine)
    shares = (math.sin(share * angle) / math.sin(angle) for share in (1 - strength, strength))
    mixed = sum(share * vector for share, vector in zip(shares, (a, b), strict=True))
    return np.asarray(mixed, np.float32).reshape(first.shape)
