from __future__ import annotations

from math import sqrt

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers.algebra import D, S, make_step, predict
from sd2rt.runtime.samplers.grid import exploding_scale, variance_exploding
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan
from sd2rt.runtime.samplers.quadrature import weights_of


def lms(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """The linear multistep method of Adams and Bashforth on dx/dsigma = eps, up to order 4, with the steps' own
    lengths: k-diffusion's LMS (Katherine Crowson).

    S_1, S_2, S_3 are the last slopes, the latest first; the order grows with them. diffusers integrates the
    interpolating polynomial numerically, to 1e-4; here it is exact.

    A late start is the rest of the levels, from an image at the first of them: a is 1, b is sigma. Its first steps
    have the weights of the order that they would have had in the whole list, without the slopes that are not
    there: a step of order 4 weighs its only slope 55/24 times. That is diffusers' behaviour, followed so that
    images are equal; it overshoots, and other samplers start late better.
    """
    grid = variance_exploding(noise, config, options)
    levels = grid.levels
    x, *slopes = S[:4]
    steps = []
    for i in range(grid.start, grid.count):
        sigma = levels[i]
        alpha = 1 / sqrt(sigma**2 + 1)
        _, eps = predict(noise.config.prediction_type, alpha * x, D, alpha, alpha * sigma)
        known = [eps, *slopes[: i - grid.start]]
        x_next = x
        for weight, slope in zip(_adams(levels, i, min(config.solver_order, i + 1)), known, strict=False):
            x_next = x_next + weight * slope
        kept = min(config.solver_order - 1, i - grid.start + 1)
        steps.append(make_step(grid.timesteps[i], sigma, x_next, *[eps, *slopes][:kept], input_scale=alpha))
    start_noise = None if options.strength is None else (1.0, levels[grid.start])
    return Plan(exploding_scale(grid, config), tuple(steps), start_noise)


def _adams(levels: list[float], i: int, order: int) -> list[float]:
    """Over the step from level i, the integrals of the polynomials that are 1 at one of the last ``order`` levels,
    0 at the others."""
    known = levels[i - order + 1 : i + 1][::-1]
    if len(set(known)) < order:
        raise RequestError(
            f"lms visits the noise level {levels[i]:g} twice: ask for fewer steps or another schedule"
        )
    step = levels[i + 1] - levels[i]
    moments = [step ** (k + 1) / (k + 1) for k in range(order)]
    return weights_of([level - levels[i] for level in known], moments)
