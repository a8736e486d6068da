from __future__ import annotations

from math import log

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers.algebra import D, S, make_step, predict
from sd2rt.runtime.samplers.alpha_sigma import Signal
from sd2rt.runtime.samplers.grid import variance_preserving
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan
from sd2rt.runtime.samplers.quadrature import weights_of

_FEW = 15


def deis(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """DEIS with log(rho), arXiv:2204.13902: the noise is extrapolated as a polynomial in log(sigma), orders 1 to 3.

    S_1 and S_2 are the last noises, the latest first; the order grows with them. With lower_order_final the last of
    fewer than 15 steps is of first order, the one before at most of second. The last step ends at the schedule's
    lowest level, or, where levels follow another rule, goes nowhere: diffusers repeats their last one.

    A late start is the rest of the list, from an image at its first noise level.

    Not supported: flow levels, eta, a last step to no noise (its logarithm is needed), levels visited twice.
    """
    lowest = config.model_copy(update={"final_sigmas_type": "sigma_min"})
    grid = variance_preserving(noise, lowest, options, repeat_last=True)
    if grid.levels[-1] == 0:
        raise RequestError(
            "deis cannot step to no noise: let the sigmas end above 0, or use dpmpp-2m or unipc"
        )
    signal, count = Signal(grid.levels), grid.count
    few = config.lower_order_final and count < _FEW
    x, *remembered = S[:3]
    steps = []
    for i in range(grid.start, count):
        _, eps = predict(noise.config.prediction_type, x, D, signal.alpha[i], signal.sigma[i])
        known = [eps, *remembered]
        order = min(config.solver_order, i - grid.start + 1)
        if few and i >= count - 2:
            order = min(order, count - i)
        x_next = x / signal.alpha[i]
        for weight, slope in zip(_weights(grid.levels, i, order), known, strict=False):
            x_next = x_next + weight * slope
        x_next = signal.alpha[i + 1] * x_next
        kept = min(config.solver_order - 1, i - grid.start + 1)
        steps.append(make_step(grid.timesteps[i], grid.levels[i], x_next, *known[:kept]))
    start_noise = None if options.strength is None else signal.start(grid.start)
    return Plan(1.0, tuple(steps), start_noise)


def _weights(levels: list[float], i: int, order: int) -> list[float]:
    """Over the step from level i, the integrals over rho of the polynomials in log(rho) that are 1 at one of the
    last ``order`` levels, 0 at the others."""
    places = [log(levels[i - k]) for k in range(order)]
    if len(set(places)) < order:
        raise RequestError(
            f"deis visits the noise level {levels[i]:g} twice: ask for fewer steps or another schedule"
        )
    ends = [(levels[k], log(levels[k]) - places[0]) for k in (i + 1, i)]
    # The integrals of 1, u and u**2 over rho, with u = log(rho / rho_i).
    moments = [
        ends[0][0] - ends[1][0],
        ends[0][0] * (ends[0][1] - 1) - ends[1][0] * (ends[1][1] - 1),
        ends[0][0] * (ends[0][1] ** 2 - 2 * ends[0][1] + 2)
        - ends[1][0] * (ends[1][1] ** 2 - 2 * ends[1][1] + 2),
    ]
    return weights_of([place - places[0] for place in places], moments[:order])
