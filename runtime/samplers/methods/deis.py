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

_FEW_STEPS = 15
"""Below this number of steps lower_order_final takes effect."""


def deis(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """DEIS with log(rho), arXiv:2204.13902: extrapolates the noise as a polynomial in log(sigma), orders 1 to 3.

    S_1 and S_2 are the last noises, the latest first; the order grows with their number. With lower_order_final and
    fewer than 15 steps, the last step is of first order and the one before at most of second. The last step ends at
    the schedule's lowest level; with a rule for levels it does nothing, because diffusers repeats the last level.

    With a strength, it starts later in the list, from an image noised to that level.

    Not supported: flow levels, eta, a last step to noise level 0 (its logarithm is needed), repeated levels.
    """
    lowest = config.model_copy(update={"final_sigmas_type": "sigma_min"})
    grid = variance_preserving(noise, lowest, options, repeat_last=True)
    if grid.levels[-1] == 0:
        raise RequestError(
            "deis cannot step to noise level 0: end the sigmas above 0, or use dpmpp-2m or unipc"
        )
    signal, count = Signal(grid.levels), grid.count
    few = config.lower_order_final and count < _FEW_STEPS
    x, *history = S[:3]
    steps = []
    for i in range(grid.start, count):
        _, eps = predict(noise.config.prediction_type, x, D, signal.alpha[i], signal.sigma[i])
        noises = [eps, *history]
        order = min(config.solver_order, i - grid.start + 1)
        if few and i >= count - 2:
            order = min(order, count - i)
        x_next = x / signal.alpha[i]
        for weight, value in zip(_weights(grid.levels, i, order), noises, strict=False):
            x_next = x_next + weight * value
        x_next = signal.alpha[i + 1] * x_next
        history_size = min(config.solver_order - 1, i - grid.start + 1)
        steps.append(make_step(grid.timesteps[i], grid.levels[i], x_next, *noises[:history_size]))
    start_noise = None if options.strength is None else signal.start(grid.start)
    return Plan(1.0, tuple(steps), start_noise)


def _weights(levels: list[float], i: int, order: int) -> list[float]:
    """Weights of the last noises: integrals over rho, from level i to i + 1, of the Lagrange polynomials in log(rho)
    of the last ``order`` levels."""
    nodes = [log(levels[i - k]) for k in range(order)]
    if len(set(nodes)) < order:
        raise RequestError(
            f"deis cannot repeat the noise level {levels[i]:g}: use fewer steps or another schedule"
        )
    ends = [(levels[k], log(levels[k]) - nodes[0]) for k in (i + 1, i)]
    # The integrals of 1, u and u**2 over rho, with u = log(rho / rho_i).
    moments = [
        ends[0][0] - ends[1][0],
        ends[0][0] * (ends[0][1] - 1) - ends[1][0] * (ends[1][1] - 1),
        ends[0][0] * (ends[0][1] ** 2 - 2 * ends[0][1] + 2)
        - ends[1][0] * (ends[1][1] ** 2 - 2 * ends[1][1] + 2),
    ]
    return weights_of([node - nodes[0] for node in nodes], moments[:order])
