from __future__ import annotations

from math import sqrt

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.runtime.samplers.algebra import D, S, make_step, predict
from sd2rt.runtime.samplers.grid import exploding_scale, variance_exploding
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan


def heun(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """Heun's method on dx/dsigma = eps, algorithm 1 of arXiv:2206.00364, without churn.

    Each step makes two network calls, at its start and at the end of an Euler step, and uses the mean of the two
    slopes. The last step, to noise level 0, is an Euler step, so N steps make 2N - 1 calls. S_1 is the sample at the
    start of the step, S_2 its first slope.

    With a strength, it skips whole steps and starts from a noised image with a = 1, b = sigma.
    """
    grid = variance_exploding(noise, config, options)
    x, step_start, slope = S[:3]
    kind = noise.config.prediction_type
    steps = []
    for i in range(grid.start, grid.count):
        sigma, sigma_next, timestep = grid.levels[i], grid.levels[i + 1], grid.timesteps[i]
        alpha = 1 / sqrt(sigma**2 + 1)
        _, eps = predict(kind, alpha * x, D, alpha, alpha * sigma)
        euler = x + (sigma_next - sigma) * eps
        next_timestep = grid.end_timestep if i == grid.count - 1 else grid.timesteps[i + 1]
        if next_timestep is None:
            steps.append(make_step(timestep, sigma, euler, input_scale=alpha))
            break
        steps.append(make_step(timestep, sigma, euler, x, eps, input_scale=alpha))
        alpha = 1 / sqrt(sigma_next**2 + 1)
        _, eps = predict(kind, alpha * x, D, alpha, alpha * sigma_next)
        x_next = step_start + (sigma_next - sigma) * (slope + eps) / 2
        steps.append(make_step(next_timestep, sigma_next, x_next, input_scale=alpha))
    start_noise = None if options.strength is None else (1.0, grid.levels[grid.start])
    return Plan(exploding_scale(grid, config), tuple(steps), start_noise)
