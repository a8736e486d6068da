from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import exp, expm1, log, sqrt

import numpy as np

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.runtime.samplers.a1111.model_levels import ModelLevels
from sd2rt.runtime.samplers.algebra import NOISE, D, Row, S, make_step, predict
from sd2rt.runtime.samplers.grid import Grid, exploding_scale, variance_exploding
from sd2rt.runtime.samplers.methods.euler import ancestral
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan, Step
from sd2rt.runtime.samplers.timesteps import refuse_eta, timesteps_of


def dpm_fast(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """DPM-Solver-fast of arXiv:2206.00927, section 3.4, as in k-diffusion: single steps of third order, of even
    length in log(sigma), and at the end one or two of lower order, so that N steps make N network calls.

    A schedule only sets the highest level; steps end at the lowest level of the noise schedule, not at 0, or at the
    last one of custom sigmas. With eta, each step goes below its end and adds fresh noise up to it, as much as in
    euler-a times eta. S_1 is the sample at the start of a step, S_2 its first slope.

    With a strength, it starts at a later level, from a noised image with a = 1, b = sigma.
    """
    eta = options.eta
    if options.a1111 is not None:
        refuse_eta(config, options)
        eta = 1.0
    grid = variance_exploding(noise, config, replace(options, eta=0.0))
    count = grid.count - grid.start
    highest, lowest = grid.levels[grid.start], _lowest(noise, grid, options)
    if options.a1111 is not None and options.strength is None:
        # AUTOMATIC1111 goes over all levels of the model in the requested number of steps, whatever the schedule.
        highest, count = ModelLevels(noise).highest, options.step_count
    orders = step_orders(count)
    ends = np.linspace(-log(highest), -log(lowest), count // 3 + 2)
    levels = [exp(-end) for end in ends.tolist()[: len(orders) + 1]]
    steps: list[Step] = []
    for order, (sigma, sigma_next) in zip(orders, pairwise(levels), strict=True):
        down = sigma_next
        if eta > 0:
            up = min(sigma_next, eta * ancestral(sigma, sigma_next)[0])
            down = max(levels[-1], sqrt(sigma_next**2 - up**2))
        steps += _single_step(noise, order, sigma, down, sqrt(sigma_next**2 - down**2), draws=eta > 0)
    start_noise = None if options.strength is None else (1.0, grid.levels[grid.start])
    return Plan(exploding_scale(grid, config), tuple(steps), start_noise)


def step_orders(count: int) -> list[int]:
    """Orders of the steps, whose sum is the number of network calls."""
    whole, rest = divmod(count, 3)
    return [3] * whole + [rest] if rest else [3] * (whole - 1) + [2, 1]


def _lowest(noise: NoiseSchedule, grid: Grid, options: SamplingOptions) -> float:
    if options.a1111 is not None:
        return ModelLevels(noise).lowest if options.strength is None else grid.levels[-2]
    return grid.levels[-1] or min(grid.levels[-2], float(noise.sigmas[0]))


def _single_step(
    noise: NoiseSchedule, order: int, sigma: float, end: float, up: float, *, draws: bool
) -> list[Step]:
    """Make the network calls of one step of DPM-Solver in the noise's form, arXiv:2206.00927, algorithms 1 and 2."""
    x, step_start, slope = S[:3]
    h = log(sigma / end)
    middles = [sigma * exp(-h * share) for share in ((), (1 / 2,), (1 / 3, 2 / 3))[order - 1]]
    places = [sigma, *middles]
    timesteps = timesteps_of(noise, np.array(places)).tolist()

    def slope_at(level: float) -> Row:
        alpha = 1 / sqrt(level**2 + 1)
        return predict(noise.config.prediction_type, alpha * x, D, alpha, alpha * level)[1]

    def call(index: int, *slots: Row, last: bool = False) -> Step:
        scale = 1 / sqrt(places[index] ** 2 + 1)
        return make_step(
            timesteps[index], places[index], *slots, input_scale=scale, draws_noise=draws and last
        )

    eps, fresh = slope_at(sigma), up * NOISE
    if order == 1:
        return [call(0, x - end * expm1(h) * eps + fresh, last=True)]
    first = middles[0]
    begin = call(0, x - (sigma - first) * eps, x, eps)
    change = slope_at(first) - slope
    plain = step_start - end * expm1(h) * slope
    if order == 2:
        return [begin, call(1, plain - end * expm1(h) * change + fresh, last=True)]
    second, part = middles[1], 2 / 3 * h
    halfway = step_start - (sigma - second) * slope - 2 * second * (expm1(part) / part - 1) * change
    change_at_second = slope_at(second) - slope
    result = plain - 3 / 2 * end * (expm1(h) / h - 1) * change_at_second + fresh
    return [begin, call(1, halfway, step_start, slope), call(2, result, last=True)]
