from __future__ import annotations

from math import expm1, factorial

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers.algebra import D, Row, S, make_step, predict
from sd2rt.runtime.samplers.alpha_sigma import Signal
from sd2rt.runtime.samplers.grid import variance_preserving
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan
from sd2rt.runtime.samplers.quadrature import weights_of


def unipc(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """UniPC, arXiv:2302.04867, orders 1 to 3, with B(h) = h (bh1) or e**h - 1 (bh2), on x_0 or on the noise.

    Each call corrects the sample that it was shown with what it says, then predicts the next one. S_1 is all that
    the correction needs of the past, made when it was at hand; S_2 and S_3 are what was predicted, the latest first.
    The order grows with them; with lower_order_final it falls again towards the end. The correction is worth one
    order: solver_order 1 to 3 converges with order 2 to 4, and with 1 to 3 where nothing is corrected.

    A late start is the rest of the list, from an image at its first noise level; disable_corrector counts steps of
    the whole list.

    A step that goes nowhere (karras, exponential and beta levels that end at sigma_min) leaves the sample as it is.

    Not supported: another solver as predictor, flow levels, eta; more than first order to no noise, where diffusers
    gives NaN; noise predictions to no noise; levels visited twice.
    """
    grid = variance_preserving(noise, config, options, repeat_last=True)
    signal, count = Signal(grid.levels), grid.count
    x, prepared, *remembered = S[:4]
    steps = []
    now: float | None = None  # the weight in the correction of what is predicted now
    for i in range(grid.start, count):
        x0, eps = predict(noise.config.prediction_type, x, D, signal.alpha[i], signal.sigma[i])
        known = [x0 if config.predict_x0 else eps, *remembered]
        sample = x
        if now is not None and i - 1 not in config.disable_corrector:
            sample = prepared + now * known[0]
        order = min(config.solver_order, i - grid.start + 1)
        if config.lower_order_final:
            order = min(order, count - i)
        x_next = _predicted(config, signal, i, order, sample, known)
        base: Row = 0 * x
        if i + 1 < count:
            now, keep, weights = _corrector(config, signal, i + 1, order)
            base = keep * sample
            for weight, value in zip(weights, known, strict=False):
                base = base + weight * value
        kept = min(config.solver_order - 1, i - grid.start + 1)
        steps.append(make_step(grid.timesteps[i], grid.levels[i], x_next, base, *known[:kept]))
    start_noise = None if options.strength is None else signal.start(grid.start)
    return Plan(1.0, tuple(steps), start_noise)


def _predicted(
    config: SamplerConfig, signal: Signal, i: int, order: int, sample: Row, known: list[Row]
) -> Row:
    """UniP's step from level i."""
    h = signal.lambdas[i + 1] - signal.lambdas[i]
    keep, scale, z = _frame(config, signal, i, i + 1)
    x_next = keep * sample - scale * expm1(z) * known[0]
    if order == 1 or h == 0:
        return x_next
    if signal.sigma[i + 1] == 0:
        raise RequestError(
            "unipc steps to no noise by first order only: set lower_order_final, or final_sigmas_type to sigma_min"
        )
    ratios = _ratios(config, signal, i, h, order)
    # Of order 2 the paper takes 1/2, which leaves out nothing that it needs.
    rhos = [0.5] if order == 2 else weights_of(ratios, _conditions(config, z, order - 1))
    for rho, ratio, value in zip(rhos, ratios, known[1:], strict=False):
        x_next = x_next - scale * _b(config, z) * rho / ratio * (value - known[0])
    return x_next


def _corrector(config: SamplerConfig, signal: Signal, i: int, order: int) -> tuple[float, float, list[float]]:
    """UniC at level i: the weights of what is predicted there, of the sample at level i - 1, and of what was
    predicted at level i - 1 and before."""
    h = signal.lambdas[i] - signal.lambdas[i - 1]
    keep, scale, z = _frame(config, signal, i - 1, i)
    b = _b(config, z)
    if order == 1:
        ratios, rhos = [], [0.5]
    else:
        ratios = _ratios(config, signal, i - 1, h, order)
        rhos = weights_of([*ratios, 1.0], _conditions(config, z, order))
    now = -scale * b * rhos[-1]
    earlier = [-scale * b * rho / ratio for rho, ratio in zip(rhos, ratios, strict=False)]
    return now, keep, [-scale * expm1(z) - now - sum(earlier), *earlier]


def _frame(config: SamplerConfig, signal: Signal, s: int, t: int) -> tuple[float, float, float]:
    """What the sample is kept with, the scale of the rest, and the exponent z of its integral."""
    h = signal.lambdas[t] - signal.lambdas[s]
    if config.predict_x0:
        return signal.sigma[t] / signal.sigma[s], signal.alpha[t], -h
    if signal.sigma[t] == 0:
        raise RequestError("unipc on noises cannot step to no noise: set final_sigmas_type to sigma_min")
    return signal.alpha[t] / signal.alpha[s], signal.sigma[t], h


def _b(config: SamplerConfig, z: float) -> float:
    return z if config.solver_type == "bh1" else expm1(z)


def _ratios(config: SamplerConfig, signal: Signal, s: int, h: float, order: int) -> list[float]:
    """Where the levels before level s lie, in units of the step."""
    behind = [signal.lambdas[s - k] - signal.lambdas[s] for k in range(1, order)]
    if h == 0 or 0 in behind or len(set(behind)) < len(behind):
        raise RequestError(
            f"{config.name} visits one noise level twice in {len(signal.lambdas) - 1} steps: ask for fewer steps or "
            "another schedule"
        )
    return [lam / h for lam in behind]


def _conditions(config: SamplerConfig, z: float, order: int) -> list[float]:
    """The right sides of the order conditions, equations 7 and 10 of the paper."""
    phi, b = expm1(z) / z - 1, _b(config, z)
    right = []
    for k in range(1, order + 1):
        right.append(phi * factorial(k) / b)
        phi = phi / z - 1 / factorial(k + 1)
    return right
