from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt

from sd2rt.engines.bundle.sampler_config import PredictionType, SamplerConfig
from sd2rt.runtime.samplers.algebra import NOISE, D, S, make_step, predict
from sd2rt.runtime.samplers.grid import exploding_scale, variance_exploding
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan, Step

Place = tuple[float, float | None]
"""Noise level and timestep; None if the network is not called there."""


def heun(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """Heun's method on dx/dsigma = eps, algorithm 1 of arXiv:2206.00364, without churn.

    Each step makes two network calls, at its start and at the end of an Euler step, and uses the mean of the two
    slopes. The last step, to noise level 0, is an Euler step, so N steps make 2N - 1 calls. S_1 is the sample at the
    start of the step, S_2 its first slope.

    With a strength, it skips whole steps and starts from a noised image with a = 1, b = sigma.
    """
    grid = variance_exploding(noise, config, options)
    places = list(zip(grid.levels, [*grid.timesteps, grid.end_timestep], strict=True))
    steps = heun_steps(noise.config.prediction_type, list(pairwise(places[grid.start :])))
    start_noise = None if options.strength is None else (1.0, grid.levels[grid.start])
    return Plan(exploding_scale(grid, config), tuple(steps), start_noise)


def heun_steps(kind: PredictionType, moves: Sequence[tuple[Place, Place]]) -> list[Step]:
    """Make the calls of Heun's steps, each from a place to another; an Euler step to places without a timestep.

    If a step begins above the end of the one before it, noise up to there is added by the last call before it.
    """
    x, step_start, slope = S[:3]
    steps = []
    begins = [*(begin for (begin, _), _ in moves[1:]), moves[-1][1][0]]
    for ((sigma, timestep), (sigma_next, next_timestep)), following in zip(moves, begins, strict=True):
        assert timestep is not None
        alpha = 1 / sqrt(sigma**2 + 1)
        _, eps = predict(kind, alpha * x, D, alpha, alpha * sigma)
        euler = x + (sigma_next - sigma) * eps
        fresh = sqrt(max(following**2 - sigma_next**2, 0)) * NOISE
        if next_timestep is None:
            steps.append(make_step(timestep, sigma, euler + fresh, input_scale=alpha))
            continue
        steps.append(make_step(timestep, sigma, euler, x, eps, input_scale=alpha))
        alpha = 1 / sqrt(sigma_next**2 + 1)
        _, eps = predict(kind, alpha * x, D, alpha, alpha * sigma_next)
        x_next = step_start + (sigma_next - sigma) * (slope + eps) / 2 + fresh
        steps.append(make_step(next_timestep, sigma_next, x_next, input_scale=alpha))
    return steps
