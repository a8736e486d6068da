"""Rules for noise levels (decreasing noise-to-signal ratios) that replace spaced timesteps."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from sd2rt.engines.interface import Float64Array

_RHO = 7.0
_SHAPE = 0.6
_TERMS = 56
"""Terms of a power series; each is about half the one before."""
_NEWTON_STEPS = 4

_AYS = np.array([14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029])


def karras(lowest: float, highest: float, count: int) -> Float64Array:
    """Equation 5 of arXiv:2206.00364, with rho = 7."""
    ramp = np.linspace(0, 1, count)
    low, high = lowest ** (1 / _RHO), highest ** (1 / _RHO)
    levels: Float64Array = (high + ramp * (low - high)) ** _RHO
    return levels


def exponential(lowest: float, highest: float, count: int) -> Float64Array:
    """Evenly spaced logarithms: the uniform lambdas = -log(sigma) of arXiv:2206.00927."""
    return np.exp(np.linspace(math.log(highest), math.log(lowest), count))


def beta(lowest: float, highest: float, count: int) -> Float64Array:
    """Quantiles of the beta distribution with both parameters 0.6, arXiv:2407.12173."""
    return lowest + _beta_quantiles(count) * (highest - lowest)


def ays(count: int) -> Float64Array:
    """Align Your Steps, arXiv:2404.14507: levels for Stable Diffusion 1.5, whose noise schedule SD2 shares.

    Returns ``count`` + 1 levels. The published levels are for ten steps; for other counts their logarithms are
    interpolated, as its authors do.
    """
    if count + 1 == len(_AYS):
        return _AYS.copy()
    positions = np.linspace(0, 1, len(_AYS))
    interpolated: Float64Array = np.exp(np.interp(np.linspace(0, 1, count + 1), positions, np.log(_AYS)))
    return interpolated


@lru_cache(maxsize=64)
def _beta_quantiles(count: int) -> Float64Array:
    """Quantiles of the beta distribution at probabilities 1 - i / (count - 1), i from 0.

    Up to x = 1/2 the distribution function is x**a times a power series; beyond, it is the mirror image.
    """
    targets = 1 - np.linspace(0, 1, count)
    n = np.arange(1, _TERMS)
    # The series of (1 - x)**(a - 1), then its integral.
    series = np.cumprod(np.append(1.0, (n - _SHAPE) / n))
    mass = series / (_SHAPE + np.arange(_TERMS))
    total = 2 * 0.5**_SHAPE * np.polynomial.polynomial.polyval(0.5, mass)
    below = np.minimum(targets, 1 - targets) * total
    # Newton's method on the logarithm, in which the function is nearly linear, starting from the first term.
    x = np.minimum((below * _SHAPE) ** (1 / _SHAPE), 0.5)
    inner = x > 0
    for _ in range(_NEWTON_STEPS):
        y = x[inner]
        value = y**_SHAPE * np.polynomial.polynomial.polyval(y, mass)
        slope = (y * (1 - y)) ** (_SHAPE - 1) * y
        x[inner] = np.minimum(y * np.exp((below[inner] - value) / slope), 0.5)
    quantiles: Float64Array = np.where(targets < 0.5, x, 1 - x)
    quantiles.setflags(write=False)
    return quantiles
