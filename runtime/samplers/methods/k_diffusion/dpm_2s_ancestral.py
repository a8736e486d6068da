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


def dpm_2s_ancestral(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """Ancestral DPM-Solver++(2S) as in k-diffusion (Katherine Crowson): midpoint steps in log(sigma) on x_0, to a
    level below the next one, and fresh noise up to it; see euler-a.

    Each step makes two network calls, at its start and at its midpoint. The last step, to noise level 0, is an Euler
    step, so N steps make 2N - 1 calls. S_1 is the sample at the start of the step.

    With a strength, it skips whole steps and starts from a noised image with a = 1, b = sigma.
    """
    grid = variance_exploding(noise, config, options)
    kind = noise.config.prediction_type
    x, step_start = S[:2]
    splits = [ancestral(sigma, sigma_next) for sigma, sigma_next in pairwise(grid.levels)]
    middles, middle_timesteps = midpoints(noise, grid.levels, (down for _, down in splits))
    steps = []
    for i in range(grid.start, grid.count):
        sigma, middle, (up, down) = grid.levels[i], middles[i], splits[i]
        alpha = 1 / sqrt(sigma**2 + 1)
        x0, _ = predict(kind, alpha * x, D, alpha, alpha * sigma)
        if down == 0:
            steps.append(make_step(grid.timesteps[i], sigma, x0, input_scale=alpha))
            continue
        x_middle = middle / sigma * x + (1 - middle / sigma) * x0
        steps.append(make_step(grid.timesteps[i], sigma, x_middle, x, input_scale=alpha))
        alpha = 1 / sqrt(middle**2 + 1)
        x0, _ = predict(kind, alpha * x, D, alpha, alpha * middle)
        x_next = down / sigma * step_start + (1 - down / sigma) * x0 + up * NOISE
        steps.append(make_step(middle_timesteps[i], middle, x_next, input_scale=alpha, draws_noise=True))
    start_noise = None if options.strength is None else (1.0, grid.levels[grid.start])
    return Plan(exploding_scale(grid, config), tuple(steps), start_noise)
