"""Rules by which noise levels (noise-to-signal ratios, falling) are chosen, in place of spaced timesteps."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_RHO = 7.0
_SHAPE = 0.6

_AYS = np.array([14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029])


def karras(lowest: float, highest: float, count: int) -> Array:
    """Equation 5 of arXiv:2206.00364, with rho = 7."""
    ramp = np.linspace(0, 1, count)
    low, high = lowest ** (1 / _RHO), highest ** (1 / _RHO)
    levels: Array = (high + ramp * (low - high)) ** _RHO
    return levels


def exponential(lowest: float, highest: float, count: int) -> Array:
    """Evenly spaced logarithms; as lambda = -log(sigma), the uniform lambdas of arXiv:2206.00927."""
    return np.exp(np.linspace(math.log(highest), math.log(lowest), count))


def beta(lowest: float, highest: float, count: int) -> Array:
    """Quantiles of the beta distribution with both parameters 0.6, arXiv:2407.12173."""
    return lowest + _beta_quantiles(count) * (highest - lowest)


def ays(count: int) -> Array:
    """Align Your Steps, arXiv:2404.14507: the ten levels optimised for Stable Diffusion 1.5, which has SD2's noise
    schedule; for other counts, interpolated between them in the logarithm, as its authors do. One more than
    ``count``, the last of which comes before no noise at all."""
    if count + 1 == len(_AYS):
        return _AYS.copy()
    places = np.linspace(0, 1, len(_AYS))
    between: Array = np.exp(np.interp(np.linspace(0, 1, count + 1), places, np.log(_AYS)))
    return between


@lru_cache(maxsize=64)
def _beta_quantiles(count: int) -> Array:
    """Where the distribution function is 1 - i / (count - 1), i from 0.

    The density (x (1 - x))**(a - 1) has poles at both ends. With x = sin(u)**2 it becomes (sin(u) cos(u))**(2a - 1)
    du, which a few Gauss-Jacobi-like substitutions would tame; for a < 1/2 it would still have poles, for 0.6 it
    is a power 0.2 at each end, and w = u**1.2 makes it smooth. By symmetry half the range is enough.
    """
    targets = 1 - np.linspace(0, 1, count)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    power = 2 * _SHAPE

    def mass(ends: Array) -> Array:
        """From 0 up to u = ends**(1 / power), at most pi / 4."""
        w = ends[:, None] * (nodes + 1) / 2
        u = w ** (1 / power)
        with np.errstate(invalid="ignore", divide="ignore"):
            smooth = np.where(u > 0, np.sin(u) * np.cos(u) / np.where(u > 0, u, 1), 1.0)
        integrals: Array = ends / 2 * (smooth ** (power - 1) @ weights) / power
        return integrals

    half = (math.pi / 4) ** power
    whole = 2 * mass(np.array([half]))[0]
    below = np.minimum(targets, 1 - targets) * whole
    # Newton from the leading term of the series, which is exact at 0; the mass is convex in between.
    w = below * power
    for _ in range(30):
        u = w ** (1 / power)
        slope = np.where(u > 0, (np.sin(u) * np.cos(u) / np.where(u > 0, u, 1)) ** (power - 1), 1.0) / power
        step = (mass(w) - below) / slope
        w = np.clip(w - step, 0, half)
        if np.abs(step).max() < 1e-16:
            break
    lower = np.sin(w ** (1 / power)) ** 2
    quantiles: Array = np.where(targets < 0.5, lower, 1 - lower)
    quantiles.setflags(write=False)
    return quantiles
