from __future__ import annotations

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers.algebra import D, Row, S, make_step
from sd2rt.runtime.samplers.alpha_sigma import Signal
from sd2rt.runtime.samplers.grid import variance_preserving
from sd2rt.runtime.samplers.methods.dpm_solver import predicted, stretch, with_fresh_noise
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan

_FEW = 15
"""Below this many steps lower_order_final has a say."""


def dpm_multistep(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """DPM-Solver++(2M), algorithm 2 of arXiv:2211.01095; with solver_order 3 its 3M, and the forms that
    algorithm_type names: dpmsolver (arXiv:2206.00927), and the SDE ones of arXiv:2211.01095, equation 14.

    The third order is so by name: it weighs the second difference with half of what its integral wants, in the
    authors' code and in diffusers, and converges with the second order, if from a smaller error; that of
    sde-dpmsolver++ has a sign wrong in diffusers, and converges with the first (weakly).

    S_1 and S_2 remember what was predicted in the last steps, the latest first; the order grows with them. The last
    step is of first order where it ends at no noise at all, with euler_at_final, or where lower_order_final is set
    and there are fewer than 15 steps; of those the last but one is at most of second order.

    A late start is the rest of the list, from an image at its first noise level: a and b are that level's
    alpha and sigma. It remembers nothing, so its first step is of first order too; the 15 steps are counted
    over the whole list.

    A last step that goes nowhere (final_sigmas_type sigma_min from timestep 0) leaves the sample as it is, where
    diffusers' Heun form gives NaN.

    Not supported: sde-dpmsolver of order 3 and dpmsolver to no noise, which do not exist, flow levels, eta, and
    schedules that visit one noise level twice before a step that needs their difference, where diffusers divides by
    zero (linspace with as many steps as timesteps, leading with as many or one fewer).
    """
    order = config.solver_order
    if config.algorithm_type == "sde-dpmsolver" and order == 3:
        raise RequestError("sde-dpmsolver has no third order: set solver_order to 1 or 2")
    grid = variance_preserving(noise, config, options)
    signal, count = Signal(grid.levels), grid.count
    few = config.lower_order_final and count < _FEW
    x, *remembered = S[:3]
    steps = []
    for i in range(grid.start, count):
        weights = stretch(config.algorithm_type, signal, i, i + 1)
        known = [predicted(config, noise.config.prediction_type, x, D, signal, i), *remembered]
        x_next = with_fresh_noise(weights.keep * x + weights.first * known[0], weights)
        reach = min(order, i - grid.start + 1)
        if i == count - 1 and (few or config.euler_at_final or config.final_sigmas_type == "zero"):
            reach = 1
        elif i == count - 2 and few:
            reach = min(reach, 2)
        if reach > 1:
            x_next = x_next + _corrections(config, signal, i, known[:reach], reach)
        draws = config.algorithm_type.startswith("sde")
        kept = min(order - 1, i - grid.start + 1)
        steps.append(make_step(grid.timesteps[i], grid.levels[i], x_next, *known[:kept], draws_noise=draws))
    start_noise = None if options.strength is None else signal.start(grid.start)
    return Plan(1.0, tuple(steps), start_noise)


def _corrections(config: SamplerConfig, signal: Signal, i: int, known: list[Row], reach: int) -> Row:
    """The terms of the step from level i that the differences of what was predicted add."""
    lambdas = signal.lambdas
    weights = stretch(config.algorithm_type, signal, i, i + 1)
    h, h_0 = lambdas[i + 1] - lambdas[i], lambdas[i] - lambdas[i - 1]
    h_1 = lambdas[i - 1] - lambdas[i - 2] if reach == 3 else 1.0
    if h_0 == 0 or h_1 == 0:
        raise RequestError(
            f"{config.name} visits one noise level twice in {len(lambdas) - 1} steps: ask for fewer steps or "
            "another schedule"
        )
    slope = h / h_0 * (known[0] - known[1])
    if reach == 2:
        return (weights.half if config.solver_type == "midpoint" else weights.second) * slope
    earlier = h / h_1 * (known[1] - known[2])
    share, bend = h_0 / (h_0 + h_1), h / (h_0 + h_1) * (slope - earlier)
    corrections: Row = weights.second * (slope + share * (slope - earlier)) + weights.third * bend
    return corrections
