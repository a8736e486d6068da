"""Schedule types of AUTOMATIC1111: rules for the noise levels of a number of steps, the level after them included."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sd2rt.engines.bundle.sampler_config import A1111Schedule
from sd2rt.runtime.samplers.a1111.model_levels import Float32Array, ModelLevels, rounded
from sd2rt.runtime.samplers.noise_schedule import float32_linspace
from sd2rt.runtime.samplers.sigma_schedules import ays
from sd2rt.runtime.samplers.sigma_schedules import beta as beta_levels

Rule = Callable[[int, ModelLevels], Float32Array]

_RHO = 7.0


def uniform(count: int, model: ModelLevels) -> Float32Array:
    """Evenly spaced timesteps, both ends included."""
    return _to_zero(model.even(count))


def sgm_uniform(count: int, model: ModelLevels) -> Float32Array:
    """Evenly spaced timesteps without the first of the schedule, which is where the last step would end."""
    return _to_zero(model.even(count + 1)[:-1])


def karras(count: int, model: ModelLevels) -> Float32Array:
    """Equation 5 of arXiv:2206.00364, with rho = 7."""
    low, high = model.lowest ** (1 / _RHO), model.highest ** (1 / _RHO)
    roots = np.float32(high) + float32_linspace(0, 1, count) * np.float32(low - high)
    return _to_zero(rounded(roots.astype(np.float64) ** _RHO))


def exponential(count: int, model: ModelLevels) -> Float32Array:
    """Evenly spaced logarithms."""
    logs = float32_linspace(math.log(model.highest), math.log(model.lowest), count)
    return _to_zero(rounded(np.exp(logs.astype(np.float64))))


def polyexponential(count: int, model: ModelLevels) -> Float32Array:
    """Powers rho of a ramp between the logarithms of both ends; rho is 1, so that they are evenly spaced."""
    low, high = math.log(model.lowest), math.log(model.highest)
    logs = float32_linspace(1, 0, count) * np.float32(high - low) + np.float32(low)
    return _to_zero(rounded(np.exp(logs.astype(np.float64))))


def kl_optimal(count: int, model: ModelLevels) -> Float32Array:
    """Tangents of evenly spaced angles, equation 40 of arXiv:2404.14507. They end at the lowest level, not at 0."""
    low, high = (np.float32(math.atan(level)) for level in (model.lowest, model.highest))
    share = np.arange(count + 1, dtype=np.float32) / np.float32(count)
    angles = share * low + (np.float32(1) - share) * high
    return rounded(np.tan(angles.astype(np.float64)))


def align_your_steps(count: int, model: ModelLevels) -> Float32Array:
    """Align Your Steps with one level for each step, where its authors have one more."""
    return _to_zero(rounded(ays(count - 1)))


def simple(count: int, model: ModelLevels) -> Float32Array:
    """Levels of whole timesteps, at even distances from the last one."""
    stride = len(model.sigmas) / count
    return _to_zero(model.sigmas[[-(1 + int(step * stride)) for step in range(count)]])


def ddim(count: int, model: ModelLevels) -> Float32Array:
    """Every n-th timestep from 1 on, with a whole n; the number of steps may exceed ``count``."""
    return _to_zero(model.sigmas[1 :: max(len(model.sigmas) // count, 1)][::-1])


def beta(count: int, model: ModelLevels) -> Float32Array:
    """Quantiles of the beta distribution with both parameters 0.6, arXiv:2407.12173."""
    return _to_zero(rounded(beta_levels(model.lowest, model.highest, count)))


RULES: dict[A1111Schedule, Rule] = {
    "uniform": uniform,
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "sgm-uniform": sgm_uniform,
    "kl-optimal": kl_optimal,
    "ays": align_your_steps,
    "simple": simple,
    "normal": uniform,
    "ddim": ddim,
    "beta": beta,
}
"""The rule of each schedule type but ``automatic``, which stands for another one by the sampler."""


def _to_zero(levels: Float32Array) -> Float32Array:
    return np.append(levels, np.float32(0))
