"""Rules by which noise levels (noise-to-signal ratios, falling) are chosen, in place of spaced timesteps."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from sd2rt.engines.interface import Float64Array

_RHO = 7.0
_SHAPE = 0.6
_TERMS = 56
"""Of a series whose terms halve."""
_ROUNDS = 4

_AYS = np.array([14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029])


def karras(lowest: float, highest: float, count: int) -> Float64Array:
    """Equation 5 of arXiv:2206.00364, with rho = 7."""
    ramp = np.linspace(0, 1, count)
    low, high = lowest ** (1 / _RHO), highest ** (1 / _RHO)
    levels: Float64Array = (high + ramp * (low - high)) ** _RHO
    return levels


def exponential(lowest: float, highest: float, count: int) -> Float64Array:
    """Evenly spaced logarithms; as lambda = -log(sigma), the uniform lambdas of arXiv:2206.00927."""
    return np.exp(np.linspace(math.log(highest), math.log(lowest), count))


def beta(lowest: float, highest: float, count: int) -> Float64Array:
    """Quantiles of the beta distribution with both parameters 0.6, arXiv:2407.12173."""
    return lowest + _beta_quantiles(count) * (highest - lowest)


def ays(count: int) -> Float64Array:
    """Align Your Steps, arXiv:2404.14507: the ten levels optimised for Stable Diffusion 1.5, which has SD2's noise
    schedule; for other counts, interpolated between them in the logarithm, as its authors do. One more than
    ``count``, the last of which comes before no noise at all."""
    if count + 1 == len(_AYS):
        return _AYS.copy()
    places = np.linspace(0, 1, len(_AYS))
    between: Float64Array = np.exp(np.interp(np.linspace(0, 1, count + 1), places, np.log(_AYS)))
    return between


@lru_cache(maxsize=64)
def _beta_quantiles(count: int) -> Float64Array:
    """Where the distribution function is 1 - i / (count - 1), i from 0.

    Up to 1/2 the function is x**a times a power series of x, the rest is its mirror image.
    """
    targets = 1 - np.linspace(0, 1, count)
    n = np.arange(1, _TERMS)
    # Of (1 - x)**(a - 1), and integrated.
    series = np.cumprod(np.append(1.0, (n - _SHAPE) / n))
    mass = series / (_SHAPE + np.arange(_TERMS))
    total = 2 * 0.5**_SHAPE * np.polynomial.polynomial.polyval(0.5, mass)
    below = np.minimum(targets, 1 - targets) * total
    # Newton from the series' first term, in the logarithm, in which the function is nearly straight.
    x = np.minimum((below * _SHAPE) ** (1 / _SHAPE), 0.5)
    inner = x > 0
    for _ in range(_ROUNDS):
        y = x[inner]
        found = y**_SHAPE * np.polynomial.polynomial.polyval(y, mass)
        slope = (y * (1 - y)) ** (_SHAPE - 1) * y
        x[inner] = np.minimum(y * np.exp((below[inner] - found) / slope), 0.5)
    quantiles: Float64Array = np.where(targets < 0.5, x, 1 - x)
    quantiles.setflags(write=False)
    return quantiles
