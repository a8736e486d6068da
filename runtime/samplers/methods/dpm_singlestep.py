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


def dpm_singlestep(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """DPM-Solver++(2S) and (3S), algorithm 1 of arXiv:2211.01095, as in diffusers: every network call is a step.

    Groups of solver_order calls start from the same sample: the first call makes a step of first order, the second a
    longer one of second order, the third one of third order. N steps are N calls. Calls left over at the end are of
    lower order, and so is a last call to noise level 0. Nothing is left over if the groups fit and lower_order_final
    is off.

    sde-dpmsolver++ converges with weak order 1 for every solver_order.

    S_1 is the sample at the start of the group; S_2 and S_3 are the predictions within it, the latest first. With a
    strength, it starts with a later call, from an image noised to its level; the first calls are of lower order,
    because there are no earlier predictions.

    Not supported: dpmsolver to noise level 0, flow levels, eta, and spacings other than linspace, which diffusers
    lacks too.
    """
    grid = variance_preserving(noise, config, options)
    signal = Signal(grid.levels)
    orders = _orders(config, grid.count)
    x, group_start, *history = S[:4]
    steps = []
    for i in range(grid.start, grid.count):
        order = min(orders[i], i - grid.start + 1)
        if order == 1:
            group_start = x
        predictions = [convert_output(config, noise.config.prediction_type, x, D, signal, i), *history]
        s = i - order + 1
        weights = step_weights(config.algorithm_type, signal, s, i + 1)
        x_next = add_noise(weights.sample * group_start + weights.first * predictions[order - 1], weights)
        if order > 1:
            x_next = x_next + _corrections(config, signal, s, predictions[:order])
        draws = config.algorithm_type.startswith("sde")
        history_size = min(config.solver_order - 1, i - grid.start + 1)
        slots = (x_next, group_start, *predictions[:history_size])
        steps.append(make_step(grid.timesteps[i], grid.levels[i], *slots, draws_noise=draws))
        group_start = S[1]
    start_noise = None if options.strength is None else signal.start(grid.start)
    return Plan(1.0, tuple(steps), start_noise)


def _orders(config: SamplerConfig, count: int) -> list[int]:
    """Order of each call: 1, 2, ... up to solver_order, repeated, and lower orders at the end."""
    order = config.solver_order
    group = list(range(1, order + 1))
    lower = config.lower_order_final or config.final_sigmas_type == "zero" or count % order != 0
    if not lower:
        orders = group * (count // order)
    elif order == 3 and count % 3 == 0:
        orders = [*group * (count // 3 - 1), 1, 2, 1]
    elif order == 2 and count % 2 == 0:
        orders = [*group * (count // 2 - 1), 1, 1]
    else:
        orders = [*group * (count // order), *group[: count % order]]
    if config.final_sigmas_type == "zero":
        orders[-1] = 1
    return orders


def _corrections(config: SamplerConfig, signal: Signal, s: int, predictions: list[Row]) -> Row:
    """Second- and third-order terms of the step from level s, from differences of the group's predictions."""
    order = len(predictions)
    lambdas = [signal.lambdas[s + k] - signal.lambdas[s] for k in range(order + 1)]
    weights = step_weights(config.algorithm_type, signal, s, s + order)
    h, inner = lambdas[-1], lambdas[1:-1]
    if 0 in inner or len(set(inner)) < len(inner):
        raise RequestError(
            f"{config.name} repeats a noise level in {len(signal.lambdas) - 1} steps: use fewer steps "
            "or another schedule"
        )
    latest, first = predictions[0], predictions[-1]
    far = h / inner[-1] * (latest - first)
    if order == 2:
        return (weights.half if config.solver_type == "midpoint" else weights.second) * far
    if config.solver_type == "midpoint":
        return weights.second * far
    near = h / inner[0] * (predictions[1] - first)
    r_near, r_far = inner[0] / h, inner[1] / h
    slope = (r_far * near - r_near * far) / (r_far - r_near)
    curvature = 2 * (far - near) / (r_far - r_near)
    corrections: Row = weights.second * slope + weights.third * curvature
    return corrections
