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
    """Linear multistep method of Adams and Bashforth on dx/dsigma = eps, up to order 4, for steps of any length:
    k-diffusion's LMS (Katherine Crowson).

    S_1, S_2, S_3 are the last slopes, the latest first; the order grows with their number. diffusers integrates the
    interpolating polynomial numerically, to 1e-4; here it is exact.

    With a strength, it starts at a later level, from a noised image with a = 1, b = sigma. As in diffusers, the first
    steps then use the weights of their position in the whole list, without the missing slopes: a first step of order
    4 multiplies its only slope by 55/24, for equal steps. This overshoots; other samplers are better for starting
    from an image.
    """
    grid = variance_exploding(noise, config, options)
    levels = grid.levels
    x, *slopes = S[:4]
    steps = []
    for i in range(grid.start, grid.count):
        sigma = levels[i]
        alpha = 1 / sqrt(sigma**2 + 1)
        _, eps = predict(noise.config.prediction_type, alpha * x, D, alpha, alpha * sigma)
        available = [eps, *slopes[: i - grid.start]]
        x_next = x
        for weight, slope in zip(_adams(levels, i, min(config.solver_order, i + 1)), available, strict=False):
            x_next = x_next + weight * slope
        history_size = min(config.solver_order - 1, i - grid.start + 1)
        history = [eps, *slopes][:history_size]
        steps.append(make_step(grid.timesteps[i], sigma, x_next, *history, input_scale=alpha))
    start_noise = None if options.strength is None else (1.0, levels[grid.start])
    return Plan(exploding_scale(grid, config), tuple(steps), start_noise)


def _adams(levels: list[float], i: int, order: int) -> list[float]:
    """Weights of the last slopes: integrals over the step from level i of the Lagrange polynomials of the last
    ``order`` levels."""
    nodes = levels[i - order + 1 : i + 1][::-1]
    if len(set(nodes)) < order:
        raise RequestError(
            f"lms cannot repeat the noise level {levels[i]:g}: use fewer steps or another schedule"
        )
    step = levels[i + 1] - levels[i]
    moments = [step ** (k + 1) / (k + 1) for k in range(order)]
    return weights_of([level - levels[i] for level in nodes], moments)
