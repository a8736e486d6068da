from __future__ import annotations

from math import sqrt

import numpy as np

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.runtime.samplers.algebra import NOISE, D, Row, S, make_step, predict
from sd2rt.runtime.samplers.grid import exploding_scale, variance_exploding
from sd2rt.runtime.samplers.methods.euler import ancestral
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan
from sd2rt.runtime.samplers.timesteps import timesteps_of


def dpm_sde(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """DPM-Solver++ for the SDE as in k-diffusion (Katherine Crowson): midpoint steps in log(sigma) on x_0, both
    halves ancestral.

    Two network calls a step; the last one, to no noise, is Euler's, so N steps make 2N - 1 calls. S_1 is where the
    step began, S_2 the noise of its first half: the whole step's noise is that of one Brownian path over sigma, so
    it holds the first half's with the share sqrt((sigma - middle) / (sigma - next)), and fresh noise for the rest.
    diffusers draws that path from torchsde, so its seeds give other pictures; the table is the same.

    A late start leaves out whole steps, from an image at the first level: a is 1, b is sigma.
    """
    grid = variance_exploding(noise, config, options)
    kind = noise.config.prediction_type
    x, began, first_noise = S[:3]
    middles = [
        sqrt(sigma * following) for sigma, following in zip(grid.levels, grid.levels[1:], strict=False)
    ]
    told = timesteps_of(noise, np.array(middles)).tolist()
    steps = []
    for i in range(grid.start, grid.count):
        sigma, middle, following = grid.levels[i], middles[i], grid.levels[i + 1]
        alpha = 1 / sqrt(sigma**2 + 1)
        x0, _ = predict(kind, alpha * x, D, alpha, alpha * sigma)
        if following == 0:
            steps.append(make_step(grid.timesteps[i], sigma, x0, input_scale=alpha))
            break
        probe = _towards(x, x0, sigma, middle, config.s_noise * NOISE)
        steps.append(
            make_step(grid.timesteps[i], sigma, probe, x, NOISE, input_scale=alpha, draws_noise=True)
        )
        alpha = 1 / sqrt(middle**2 + 1)
        x0, _ = predict(kind, alpha * x, D, alpha, alpha * middle)
        share = (sigma - middle) / (sigma - following)
        path = sqrt(share) * first_noise + sqrt(1 - share) * NOISE
        x_next = _towards(began, x0, sigma, following, config.s_noise * path)
        steps.append(make_step(told[i], middle, x_next, input_scale=alpha, draws_noise=True))
    start_noise = None if options.strength is None else (1.0, grid.levels[grid.start])
    return Plan(exploding_scale(grid, config), tuple(steps), start_noise)


def _towards(x: Row, x0: Row, sigma: float, target: float, fresh: Row) -> Row:
    """x at level sigma, moved towards x_0 to below the target and brought up to it by unit noise."""
    up, down = ancestral(sigma, target)
    moved: Row = down / sigma * x + (1 - down / sigma) * x0 + up * fresh
    return moved
