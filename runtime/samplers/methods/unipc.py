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
    """UniPC, arXiv:2302.04867, orders 1 to 3, with B(h) = h (bh1) or e**h - 1 (bh2), for x_0 or the noise.

    Each call corrects its input sample with the new output, then predicts the next sample. S_1 is the part of the
    next correction that is known before the call; S_2 and S_3 are the last predictions, the latest first. The order
    grows with their number and, with lower_order_final, decreases towards the end. The corrector adds one order:
    solver_order 1 to 3 converges with order 2 to 4, or with 1 to 3 if the corrector is disabled.

    With a strength, it starts later in the list, from an image noised to that level; disable_corrector counts steps
    of the whole list.

    A step that stays at its level (karras, exponential and beta levels with sigma_min) leaves the sample unchanged.

    Not supported: another solver as predictor; flow levels; eta; more than first order to noise level 0, where
    diffusers gives NaN; predict_x0 off to noise level 0; repeated levels.
    """
    grid = variance_preserving(noise, config, options, repeat_last=True)
    signal, count = Signal(grid.levels), grid.count
    x, prepared, *history = S[:4]
    steps = []
    corrector_weight: float | None = None  # of the current prediction
    for i in range(grid.start, count):
        if grid.conversions is None:
            x0, eps = predict(noise.config.prediction_type, x, D, signal.alpha[i], signal.sigma[i])
        else:
            _, eps = predict(noise.config.prediction_type, x, D, *grid.conversions[i])
            x0 = (x - signal.sigma[i] * eps) / signal.alpha[i]
        predictions = [x0 if config.predict_x0 else eps, *history]
        sample = x
        if corrector_weight is not None and i - 1 not in config.disable_corrector:
            sample = prepared + corrector_weight * predictions[0]
        order = min(config.solver_order, i - grid.start + 1)
        if config.lower_order_final:
            order = min(order, count - i)
        x_next = _predictor(config, signal, i, order, sample, predictions)
        base: Row = 0 * x
        if i + 1 < count:
            corrector_weight, sample_weight, weights = _corrector(config, signal, i + 1, order)
            base = sample_weight * sample
            for weight, value in zip(weights, predictions, strict=False):
                base = base + weight * value
        history_size = min(config.solver_order - 1, i - grid.start + 1)
        steps.append(make_step(grid.timesteps[i], grid.levels[i], x_next, base, *predictions[:history_size]))
    first = signal.start(grid.start) if grid.start_noise is None else grid.start_noise
    return Plan(1.0, tuple(steps), None if options.strength is None else first)


def _predictor(
    config: SamplerConfig, signal: Signal, i: int, order: int, sample: Row, predictions: list[Row]
) -> Row:
    """Make UniP's step from level i."""
    h = signal.lambdas[i + 1] - signal.lambdas[i]
    sample_weight, scale, z = _base_weights(config, signal, i, i + 1)
    x_next = sample_weight * sample - scale * expm1(z) * predictions[0]
    if order == 1 or h == 0:
        return x_next
    if signal.sigma[i + 1] == 0:
        raise RequestError(
            "unipc can step to noise level 0 with first order only: set lower_order_final, or final_sigmas_type to "
            "sigma_min"
        )
    ratios = _ratios(config, signal, i, h, order)
    # For order 2 the paper uses 1/2, which is accurate enough.
    rhos = [0.5] if order == 2 else weights_of(ratios, _conditions(config, z, order - 1))
    for rho, ratio, value in zip(rhos, ratios, predictions[1:], strict=False):
        x_next = x_next - scale * _b(config, z) * rho / ratio * (value - predictions[0])
    return x_next


def _corrector(config: SamplerConfig, signal: Signal, i: int, order: int) -> tuple[float, float, list[float]]:
    """Compute UniC's weights at level i: of the prediction there, of the sample at level i - 1, and of the
    predictions at level i - 1 and before."""
    h = signal.lambdas[i] - signal.lambdas[i - 1]
    sample_weight, scale, z = _base_weights(config, signal, i - 1, i)
    b = _b(config, z)
    if order == 1:
        ratios, rhos = [], [0.5]
    else:
        ratios = _ratios(config, signal, i - 1, h, order)
        rhos = weights_of([*ratios, 1.0], _conditions(config, z, order))
    current = -scale * b * rhos[-1]
    earlier = [-scale * b * rho / ratio for rho, ratio in zip(rhos, ratios, strict=False)]
    return current, sample_weight, [-scale * expm1(z) - current - sum(earlier), *earlier]


def _base_weights(config: SamplerConfig, signal: Signal, s: int, t: int) -> tuple[float, float, float]:
    """Weight of the sample, scale of the predictions, and the exponent z of their integral."""
    h = signal.lambdas[t] - signal.lambdas[s]
    if config.predict_x0:
        return signal.sigma[t] / signal.sigma[s], signal.alpha[t], -h
    if signal.sigma[t] == 0:
        raise RequestError(
            "unipc with predict_x0 off cannot step to noise level 0: set final_sigmas_type to sigma_min"
        )
    return signal.alpha[t] / signal.alpha[s], signal.sigma[t], h


def _b(config: SamplerConfig, z: float) -> float:
    return z if config.solver_type == "bh1" else expm1(z)


def _ratios(config: SamplerConfig, signal: Signal, s: int, h: float, order: int) -> list[float]:
    """Distances of the levels before level s, in units of the step."""
    distances = [signal.lambdas[s - k] - signal.lambdas[s] for k in range(1, order)]
    if h == 0 or 0 in distances or len(set(distances)) < len(distances):
        raise RequestError(
            f"{config.name} repeats a noise level in {len(signal.lambdas) - 1} steps: use fewer steps or "
            "another schedule"
        )
    return [distance / h for distance in distances]


def _conditions(config: SamplerConfig, z: float, order: int) -> list[float]:
    """Right-hand sides of the order conditions, equations 7 and 10 of the paper."""
    phi, b = expm1(z) / z - 1, _b(config, z)
    conditions = []
    for k in range(1, order + 1):
        conditions.append(phi * factorial(k) / b)
        phi = phi / z - 1 / factorial(k + 1)
    return conditions
