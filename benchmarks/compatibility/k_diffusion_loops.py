"""k-diffusion's samplers as plain loops, written from the papers' formulas: one function for each method.

The state is x_0 + sigma eps in float64. ``denoise`` predicts x_0, ``noise`` draws the standard normals of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]
Denoise = Callable[[Array, float], Array]
"""Clean image for a sample x_0 + sigma eps and sigma."""
Noise = Callable[[float, float], Array]
"""Standard normals of a step between two levels."""
Loop = Callable[[Denoise, Array, list[float], Noise], Array]


def split(sigma: float, following: float) -> tuple[float, float]:
    """Levels of an ancestral step: where it goes, and the amount of noise from there."""
    up = min(following, math.sqrt(following**2 * (sigma**2 - following**2) / sigma**2))
    return math.sqrt(following**2 - up**2), up


def euler(denoise: Denoise, x: Array, sigmas: list[float], noise: Noise) -> Array:
    for sigma, following in pairwise(sigmas):
        x = x + (x - denoise(x, sigma)) / sigma * (following - sigma)
    return x


def euler_ancestral(denoise: Denoise, x: Array, sigmas: list[float], noise: Noise) -> Array:
    for sigma, following in pairwise(sigmas):
        down, up = split(sigma, following)
        x = x + (x - denoise(x, sigma)) / sigma * (down - sigma)
        if following > 0:
            x = x + noise(sigma, following) * up
    return x


def heun(denoise: Denoise, x: Array, sigmas: list[float], noise: Noise) -> Array:
    for sigma, following in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        end = x + slope * (following - sigma)
        if following > 0:
            slope = (slope + (end - denoise(end, following)) / following) / 2
        x = x + slope * (following - sigma)
    return x


def restart(denoise: Denoise, x: Array, sigmas: list[float], noise: Noise) -> Array:
    """Restart sampling (arXiv:2306.14878) with the restarts that AUTOMATIC1111 chooses by the number of steps."""
    count = len(sigmas) - 1
    if count < 20:
        return heun(denoise, x, sigmas, noise)
    length, times = (count // 4, 2) if count >= 36 else (9, 1)

    def karras(highest: float, lowest: float, many: int) -> list[float]:
        ends = highest ** (1 / 7), lowest ** (1 / 7)
        return [float(root**7) for root in np.linspace(*ends, many)]

    sigmas = [*karras(sigmas[0], sigmas[-2], count - length * times), 0.0]
    back_at = int(np.argmin(np.abs(np.array(sigmas) - 0.1)))
    top = int(np.argmin(np.abs(np.array(sigmas) - 2.0)))
    if back_at == 0:
        return heun(denoise, x, sigmas, noise)
    x = heun(denoise, x, sigmas[: back_at + 1], noise)
    for _ in range(times if top < back_at else 0):
        low, high = sigmas[back_at], sigmas[top]
        x = x + math.sqrt(high**2 - low**2) * noise(low, high)
        x = heun(denoise, x, karras(high, low, length + 1), noise)
    return heun(denoise, x, sigmas[back_at:], noise)


def dpm_fast(denoise: Denoise, x: Array, sigmas: list[float], noise: Noise) -> Array:
    return dpm_fast_between(denoise, x, (sigmas[0], sigmas[-2]), len(sigmas) - 1, noise, eta=1.0)


def dpm_fast_between(
    denoise: Denoise, x: Array, ends: tuple[float, float], count: int, noise: Noise, *, eta: float
) -> Array:
    """DPM-Solver-fast (arXiv:2206.00927): the exact integral of the interpolated noise in t = -log(sigma)."""
    places = np.linspace(-math.log(ends[0]), -math.log(ends[1]), count // 3 + 2)
    calls = count
    for t, following in pairwise(places):
        order = min(3, calls)
        if calls == 3:
            order = 2
        if order == 0:
            break
        calls -= order
        target = following
        if eta > 0:
            up = min(1.0, eta * math.sqrt(1 - math.exp(2 * (t - following))))
            target = min(places[-1], following - math.log1p(-(up**2)) / 2) if up < 1 else places[-1]
        x = _single_step(denoise, x, (t, target), order)
        if eta > 0:
            level, end = math.exp(-following), math.exp(-target)
            x = x + math.sqrt(max(level**2 - end**2, 0.0)) * noise(math.exp(-t), level)
    return x


def _single_step(denoise: Denoise, x: Array, ends: tuple[float, float], order: int) -> Array:
    t, h = ends[0], ends[1] - ends[0]

    def slope(x: Array, share: float) -> Array:
        at = t + share * h
        return np.asarray((x - denoise(x, math.exp(-at))) * math.exp(at))

    def reached(share: float, rise: Array, by: float) -> Array:
        """Solution at a share of the step, for a slope that changes by ``rise``."""
        sigma = math.exp(-(t + share * h))
        return np.asarray(x - sigma * (math.expm1(share * h) * first + by * rise))

    def line(share: float) -> float:
        return math.expm1(share * h) / (share * h) - 1

    first = slope(x, 0)
    if order == 1:
        return reached(1, first, 0)
    if order == 2:
        half = reached(1 / 2, first, 0)
        return reached(1, slope(half, 1 / 2) - first, math.expm1(h))
    third = reached(1 / 3, first, 0)
    later = reached(2 / 3, slope(third, 1 / 3) - first, 2 * line(2 / 3))
    return reached(1, slope(later, 2 / 3) - first, 3 / 2 * line(1))


def lms(denoise: Denoise, x: Array, sigmas: list[float], noise: Noise) -> Array:
    slopes: list[Array] = []
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        slopes = [(x - denoise(x, sigma)) / sigma, *slopes[:3]]
        places = [sigmas[i - k] for k in range(len(slopes))]
        for k, slope in enumerate(slopes):
            basis = np.polynomial.Polynomial([1.0])
            for other in places[:k] + places[k + 1 :]:
                basis *= np.polynomial.Polynomial([-other, 1.0]) / (places[k] - other)
            integral = basis.integ()
            x = x + (integral(following) - integral(sigma)) * slope
    return x


def dpm2(denoise: Denoise, x: Array, sigmas: list[float], noise: Noise) -> Array:
    return _midpoints(denoise, x, sigmas, None)


def dpm2_ancestral(denoise: Denoise, x: Array, sigmas: list[float], noise: Noise) -> Array:
    return _midpoints(denoise, x, sigmas, noise)


def _midpoints(denoise: Denoise, x: Array, sigmas: list[float], noise: Noise | None) -> Array:
    for sigma, following in pairwise(sigmas):
        down, up = (following, 0.0) if noise is None else split(sigma, following)
        slope = (x - denoise(x, sigma)) / sigma
        if down > 0:
            middle = math.exp((math.log(sigma) + math.log(down)) / 2)
            halfway = x + slope * (middle - sigma)
            slope = (halfway - denoise(halfway, middle)) / middle
        x = x + slope * (down - sigma)
        if noise is not None and following > 0:
            x = x + noise(sigma, following) * up
    return x


def dpmpp_2s_ancestral(denoise: Denoise, x: Array, sigmas: list[float], noise: Noise) -> Array:
    for sigma, following in pairwise(sigmas):
        down, up = split(sigma, following)
        clean = denoise(x, sigma)
        if down > 0:
            h = math.log(sigma / down)
            halfway = math.exp(-h / 2) * x - math.expm1(-h / 2) * clean
            clean = denoise(halfway, sigma * math.exp(-h / 2))
        x = clean + (x - clean) * down / sigma
        if following > 0:
            x = x + noise(sigma, following) * up
    return x


def dpmpp_sde(denoise: Denoise, x: Array, sigmas: list[float], noise: Noise) -> Array:
    for sigma, following in pairwise(sigmas):
        clean = denoise(x, sigma)
        if following == 0:
            return clean
        # The places on the Brownian path pass through float32 logarithms.
        t, end = (-torch.tensor(each).log() for each in (sigma, following))
        begin, half, last = (float((-place).exp()) for place in (t, t + (end - t) * 0.5, end))
        down, up = split(begin, half)
        middle = clean + (x - clean) * down / begin + up * noise(begin, half)
        clean = denoise(middle, half)
        down, up = split(begin, last)
        x = clean + (x - clean) * down / begin + up * noise(begin, last)
    return x


def dpmpp_2m(denoise: Denoise, x: Array, sigmas: list[float], noise: Noise) -> Array:
    older: Array | None = None
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        clean = mean = denoise(x, sigma)
        if older is not None and following > 0:
            ratio = math.log(sigma / following) / math.log(sigmas[i - 1] / sigma) / 2
            mean = (1 + ratio) * clean - ratio * older
        x = following / sigma * x + (1 - following / sigma) * mean
        older = clean
    return x


def dpmpp_2m_sde(
    denoise: Denoise, x: Array, sigmas: list[float], noise: Noise, *, heun: bool = False
) -> Array:
    older: Array | None = None
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        clean = denoise(x, sigma)
        if following == 0:
            return clean
        h = math.log(sigma / following)
        keep = math.exp(-2 * h)
        x = keep * x + (1 - keep) * clean
        if older is not None:
            slope = (clean - older) * h / math.log(sigmas[i - 1] / sigma)
            x = x + (1 - (1 - keep) / (2 * h) if heun else (1 - keep) / 2) * slope
        x = x + following * math.sqrt(1 - keep) * noise(sigma, following)
        older = clean
    return x


def dpmpp_2m_sde_heun(denoise: Denoise, x: Array, sigmas: list[float], noise: Noise) -> Array:
    return dpmpp_2m_sde(denoise, x, sigmas, noise, heun=True)


def dpmpp_3m_sde(denoise: Denoise, x: Array, sigmas: list[float], noise: Noise) -> Array:
    known: list[tuple[float, Array]] = []
    for sigma, following in pairwise(sigmas):
        clean = denoise(x, sigma)
        if following == 0:
            return clean
        place, h = -math.log(sigma), math.log(sigma / following)
        known = [(place, clean), *known[:2]]
        keep = math.exp(-2 * h)
        x = keep * x + (1 - keep) * clean
        line = 1 - (1 - keep) / (2 * h)
        rises = [h * (new - old) / (at - before) for (at, new), (before, old) in pairwise(known)]
        if len(rises) == 1:
            x = x + line * rises[0]
        elif rises:
            # Newton's divided differences, the second one over the whole distance.
            last = (known[0][0] - known[1][0]) / h
            second = (rises[0] - rises[1]) / ((known[0][0] - known[2][0]) / h)
            x = x + line * (rises[0] + last * second) - (line / (2 * h) - 0.5) * second
        x = x + following * math.sqrt(1 - keep) * noise(sigma, following)
    return x


def lcm(denoise: Denoise, x: Array, sigmas: list[float], noise: Noise) -> Array:
    for sigma, following in pairwise(sigmas):
        x = denoise(x, sigma)
        if following > 0:
            x = x + following * noise(sigma, following)
    return x
