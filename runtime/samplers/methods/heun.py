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

    Two network calls a step: at its start, and where Euler's step would end; the step is taken with the mean of the
    two slopes. The last one, to no noise, is Euler's, so N steps make 2N - 1 calls. S_1 is where the step began, S_2
    its first slope.

    A late start leaves out whole steps, from an image at the first level: a is 1, b is sigma.
    """
    grid = variance_exploding(noise, config, options)
    x, began, slope = S[:3]
    kind = noise.config.prediction_type
    steps = []
    for i in range(grid.start, grid.count):
        sigma, sigma_next, timestep = grid.levels[i], grid.levels[i + 1], grid.timesteps[i]
        alpha = 1 / sqrt(sigma**2 + 1)
        _, eps = predict(kind, alpha * x, D, alpha, alpha * sigma)
        euler = x + (sigma_next - sigma) * eps
        if i == grid.count - 1:
            steps.append(make_step(timestep, sigma, euler, input_scale=alpha))
            break
        steps.append(make_step(timestep, sigma, euler, x, eps, input_scale=alpha))
        alpha = 1 / sqrt(sigma_next**2 + 1)
        _, eps = predict(kind, alpha * x, D, alpha, alpha * sigma_next)
        x_next = began + (sigma_next - sigma) * (slope + eps) / 2
        steps.append(make_step(grid.timesteps[i + 1], sigma_next, x_next, input_scale=alpha))
    start_noise = None if options.strength is None else (1.0, grid.levels[grid.start])
    return Plan(exploding_scale(grid, config), tuple(steps), start_noise)
