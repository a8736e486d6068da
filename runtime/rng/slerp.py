"""Interpolation between the noises of two seeds."""

from __future__ import annotations

import math

import numpy as np

from sd2rt.engines.interface import Float32Array

_PARALLEL = 0.9995
"""Cosine above which two vectors count as parallel: the sine of their angle is too small to divide by."""


def slerp(first: Float32Array, second: Float32Array, strength: float) -> Float32Array:
    """Interpolate spherically from ``first``, at strength 0, to ``second``, at 1, of the same shape.

    Each noise is one vector, and the path is a great circle: its midpoint keeps the length of its ends, whereas the
    mean of two normals would be too short for noise. Parallel vectors are interpolated linearly. The ends are exact.
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
