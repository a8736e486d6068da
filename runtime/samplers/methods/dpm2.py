from __future__ import annotations

from math import sqrt

import numpy as np

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.runtime.samplers.algebra import NOISE, D, S, make_step, predict
from sd2rt.runtime.samplers.grid import exploding_scale, variance_exploding
from sd2rt.runtime.samplers.methods.euler import ancestral
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan
from sd2rt.runtime.samplers.timesteps import timesteps_of


def dpm2(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """DPM-Solver-2, algorithm 1 of arXiv:2206.00927, in k-diffusion's form: midpoint steps on dx/dsigma = eps, the
    middle being that of log(sigma).

    Two network calls a step, at its start and in its middle; the last one, to no noise, is Euler's, so N steps make
    2N - 1 calls. S_1 is where the step began.

    A late start leaves out whole steps, from an image at the first level: a is 1, b is sigma.
    """
    return _midpoint(noise, config, options, stochastic=False)


def dpm2_ancestral(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """dpm2's steps to a lower level than the next, and fresh noise up to that one; see euler-a."""
    return _midpoint(noise, config, options, stochastic=True)


def _midpoint(
    noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions, *, stochastic: bool
) -> Plan:
    grid = variance_exploding(noise, config, options, whole=True)
    x, began = S[:2]
    kind = noise.config.prediction_type
    ways = [
        ancestral(sigma, following) if stochastic else (0.0, following)
        for sigma, following in zip(grid.levels, grid.levels[1:], strict=False)
    ]
    middles = [sqrt(sigma * down) for sigma, (_, down) in zip(grid.levels, ways, strict=False)]
    told = timesteps_of(noise, np.array(middles)).tolist()
    steps = []
    for i in range(grid.start, grid.count):
        sigma, middle, (up, down) = grid.levels[i], middles[i], ways[i]
        alpha = 1 / sqrt(sigma**2 + 1)
        _, eps = predict(kind, alpha * x, D, alpha, alpha * sigma)
        if i == grid.count - 1 and grid.levels[-1] == 0:
            steps.append(make_step(grid.timesteps[i], sigma, x - sigma * eps, input_scale=alpha))
            break
        probe = x + (middle - sigma) * eps
        steps.append(make_step(grid.timesteps[i], sigma, probe, x, input_scale=alpha))
        alpha = 1 / sqrt(middle**2 + 1)
        _, eps = predict(kind, alpha * x, D, alpha, alpha * middle)
        x_next = began + (down - sigma) * eps + up * NOISE
        steps.append(make_step(told[i], middle, x_next, input_scale=alpha, draws_noise=stochastic))
    start_noise = None if options.strength is None else (1.0, grid.levels[grid.start])
    return Plan(exploding_scale(grid, config), tuple(steps), start_noise)
