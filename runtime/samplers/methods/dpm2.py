from __future__ import annotations

from itertools import pairwise
from math import sqrt

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.runtime.samplers.algebra import NOISE, D, S, make_step, predict
from sd2rt.runtime.samplers.grid import exploding_scale, midpoints, variance_exploding
from sd2rt.runtime.samplers.methods.euler import ancestral
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan


def dpm2(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """DPM-Solver-2, algorithm 1 of arXiv:2206.00927, as in k-diffusion: midpoint steps on dx/dsigma = eps, with the
    midpoint in log(sigma).

    Each step makes two network calls, at its start and at its midpoint. The last step, to noise level 0, is an Euler
    step, so N steps make 2N - 1 calls. S_1 is the sample at the start of the step.

    With a strength, it skips whole steps and starts from a noised image with a = 1, b = sigma.
    """
    return _midpoint(noise, config, options, stochastic=False)


def dpm2_ancestral(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """Ancestral dpm2: each step goes below the next level and adds fresh noise up to it; see euler-a."""
    return _midpoint(noise, config, options, stochastic=True)


def _midpoint(
    noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions, *, stochastic: bool
) -> Plan:
    grid = variance_exploding(noise, config, options, round_karras=True)
    x, step_start = S[:2]
    kind = noise.config.prediction_type
    splits = [
        ancestral(sigma, sigma_next) if stochastic else (0.0, sigma_next)
        for sigma, sigma_next in pairwise(grid.levels)
    ]
    middles, middle_timesteps = midpoints(noise, grid.levels, (down for _, down in splits))
    steps = []
    for i in range(grid.start, grid.count):
        sigma, middle, (up, down) = grid.levels[i], middles[i], splits[i]
        alpha = 1 / sqrt(sigma**2 + 1)
        _, eps = predict(kind, alpha * x, D, alpha, alpha * sigma)
        if i == grid.count - 1 and grid.levels[-1] == 0:
            steps.append(make_step(grid.timesteps[i], sigma, x - sigma * eps, input_scale=alpha))
            break
        x_middle = x + (middle - sigma) * eps
        steps.append(make_step(grid.timesteps[i], sigma, x_middle, x, input_scale=alpha))
        alpha = 1 / sqrt(middle**2 + 1)
        _, eps = predict(kind, alpha * x, D, alpha, alpha * middle)
        x_next = step_start + (down - sigma) * eps + up * NOISE
        steps.append(
            make_step(
                middle_timesteps[i],
                middle,
                x_next,
                input_scale=alpha,
                draws_noise=stochastic,
                # diffusers gives the kept area of a mask the level of the next step, not that of the midpoint.
                kept_level=grid.levels[i + 1],
            )
        )
    start_noise = None if options.strength is None else (1.0, grid.levels[grid.start])
    return Plan(exploding_scale(grid, config), tuple(steps), start_noise)
