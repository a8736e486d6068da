from __future__ import annotations

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers.algebra import D, Row, S, make_step
from sd2rt.runtime.samplers.alpha_sigma import Signal
from sd2rt.runtime.samplers.grid import variance_preserving
from sd2rt.runtime.samplers.methods.dpm_solver import add_noise, convert_output, step_weights
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan

_FEW_STEPS = 15
"""Below this number of steps lower_order_final takes effect."""


def dpm_multistep(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """DPM-Solver++(2M), algorithm 2 of arXiv:2211.01095; with solver_order 3, DPM-Solver++(3M). Other forms by
    algorithm_type: dpmsolver (arXiv:2206.00927), and the SDE forms of arXiv:2211.01095, equation 14.

    solver_order 3 converges with order 2 only, from a smaller error: the authors' code and diffusers give the second
    difference half the weight of its integral. With sde-dpmsolver++ it converges with weak order 1, because of a
    wrong sign in diffusers. Both are reproduced here.

    S_1 and S_2 are the last predictions, the latest first; the order grows with their number. The last step is of
    first order if it ends at noise level 0, with euler_at_final, or with lower_order_final and fewer than 15 steps;
    in that last case the step before it is at most of second order.

    With a strength, it starts later in the list, from a noised image with the level's alpha and sigma as a and b. The
    first step is then of first order. The limit of 15 steps refers to the whole list.

    A last step that stays at its level (final_sigmas_type sigma_min from timestep 0) leaves the sample unchanged;
    diffusers' Heun form gives NaN.

    Not supported: sde-dpmsolver of order 3 and dpmsolver to noise level 0, which do not exist; flow levels; eta; and
    schedules that repeat a noise level before a step that needs the difference, where diffusers divides by zero
    (linspace with as many steps as timesteps, leading with as many or one fewer).
    """
    order = config.solver_order
    if config.algorithm_type == "sde-dpmsolver" and order == 3:
        raise RequestError("sde-dpmsolver has no third order: set solver_order to 1 or 2")
    grid = variance_preserving(noise, config, options)
    signal, count = Signal(grid.levels), grid.count
    few = config.lower_order_final and count < _FEW_STEPS
    sde = config.algorithm_type.startswith("sde")
    x, *history = S[:3]
    steps = []
    for i in range(grid.start, count):
        weights = step_weights(config.algorithm_type, signal, i, i + 1)
        predictions = [convert_output(config, noise.config.prediction_type, x, D, signal, i), *history]
        x_next = add_noise(weights.sample * x + weights.first * predictions[0], weights)
        step_order = min(order, i - grid.start + 1)
        if i == count - 1 and (few or config.euler_at_final or config.final_sigmas_type == "zero"):
            step_order = 1
        elif i == count - 2 and few:
            step_order = min(step_order, 2)
        if step_order > 1:
            x_next = x_next + _corrections(config, signal, i, predictions, step_order)
        if i == count - 1:
            x_next = grid.end_scale * x_next
        history_size = min(order - 1, i - grid.start + 1)
        steps.append(
            make_step(
                grid.timesteps[i],
                grid.levels[i],
                x_next,
                *predictions[:history_size],
                draws_noise=sde,
                interval=grid.interval(i) if sde else None,
            )
        )
    start_noise = None if options.strength is None else signal.start(grid.start)
    return Plan(grid.scale, tuple(steps), start_noise, grid.path if sde else None)


def _corrections(config: SamplerConfig, signal: Signal, i: int, predictions: list[Row], order: int) -> Row:
    """Second- and third-order terms of the step from level i, from differences of the last predictions."""
    lambdas = signal.lambdas
    weights = step_weights(config.algorithm_type, signal, i, i + 1)
    h, h_0 = lambdas[i + 1] - lambdas[i], lambdas[i] - lambdas[i - 1]
    h_1 = lambdas[i - 1] - lambdas[i - 2] if order == 3 else 1.0
    if h_0 == 0 or h_1 == 0:
        raise RequestError(
            f"{config.name} repeats a noise level in {len(lambdas) - 1} steps: use fewer steps or "
            "another schedule"
        )
    slope = h / h_0 * (predictions[0] - predictions[1])
    if order == 2:
        return (weights.half if config.solver_type == "midpoint" else weights.second) * slope
    earlier_slope = h / h_1 * (predictions[1] - predictions[2])
    share, curvature = h_0 / (h_0 + h_1), h / (h_0 + h_1) * (slope - earlier_slope)
    corrections: Row = weights.second * (slope + share * (slope - earlier_slope)) + weights.third * curvature
    return corrections
