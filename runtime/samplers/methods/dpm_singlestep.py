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


def dpm_singlestep(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """DPM-Solver++(2S) and (3S), algorithm 1 of arXiv:2211.01095 as diffusers has it: every call counts as a step.

    Groups of solver_order calls share a beginning: the first call takes a step of first order from it, the second
    takes a longer one of second order from the same place, the third one of third order. N steps are N calls, and
    what is left over at the end is of lower order, as is the last call where it ends at no noise. Where
    lower_order_final is off and the groups come out even there is no such rest.

    sde-dpmsolver++ converges with the first order (weakly) whatever solver_order is.

    S_1 is where the group began; S_2 and S_3 are what was predicted in it, the latest first. A late start is the
    rest of the calls, from an image at the first one's noise level; its first ones are of the order that what is
    remembered allows.

    Not supported: dpmsolver to no noise, flow levels, eta, custom spacing (diffusers has linspace alone).
    """
    grid = variance_preserving(noise, config, options)
    signal = Signal(grid.levels)
    orders = _orders(config, grid.count)
    x, began, *remembered = S[:4]
    steps = []
    for i in range(grid.start, grid.count):
        order = min(orders[i], i - grid.start + 1)
        if order == 1:
            began = x
        known = [predicted(config, noise.config.prediction_type, x, D, signal, i), *remembered]
        s = i - order + 1
        weights = stretch(config.algorithm_type, signal, s, i + 1)
        x_next = with_fresh_noise(weights.keep * began + weights.first * known[order - 1], weights)
        if order > 1:
            x_next = x_next + _corrections(config, signal, s, known[:order])
        draws = config.algorithm_type.startswith("sde")
        kept = min(config.solver_order - 1, i - grid.start + 1)
        steps.append(
            make_step(grid.timesteps[i], grid.levels[i], x_next, began, *known[:kept], draws_noise=draws)
        )
        began = S[1]
    start_noise = None if options.strength is None else signal.start(grid.start)
    return Plan(1.0, tuple(steps), start_noise)


def _orders(config: SamplerConfig, count: int) -> list[int]:
    """The order of each call: 1, 2, .. up to solver_order, over and over, and what is left over at the end."""
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


def _corrections(config: SamplerConfig, signal: Signal, s: int, known: list[Row]) -> Row:
    """The terms of the step from level s that the differences of what was predicted since then add."""
    order = len(known)
    lambdas = [signal.lambdas[s + k] - signal.lambdas[s] for k in range(order + 1)]
    weights = stretch(config.algorithm_type, signal, s, s + order)
    h, inner = lambdas[-1], lambdas[1:-1]
    if 0 in inner or len(set(inner)) < len(inner):
        raise RequestError(
            f"{config.name} visits one noise level twice in {len(signal.lambdas) - 1} steps: ask for fewer steps "
            "or another schedule"
        )
    latest, first = known[0], known[-1]
    far = h / inner[-1] * (latest - first)
    if order == 2:
        return (weights.half if config.solver_type == "midpoint" else weights.second) * far
    if config.solver_type == "midpoint":
        return weights.second * far
    near = h / inner[0] * (known[1] - first)
    r_near, r_far = inner[0] / h, inner[1] / h
    slope = (r_far * near - r_near * far) / (r_far - r_near)
    bend = 2 * (far - near) / (r_far - r_near)
    corrections: Row = weights.second * slope + weights.third * bend
    return corrections
