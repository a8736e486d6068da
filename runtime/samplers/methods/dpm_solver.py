"""The update of DPM-Solver and DPM-Solver++, shared by the multistep and the single-step methods."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, expm1, sqrt

from sd2rt.engines.bundle.sampler_config import PredictionType, SamplerConfig
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers.algebra import NOISE, Row, predict
from sd2rt.runtime.samplers.alpha_sigma import Signal


@dataclass(frozen=True, slots=True)
class Stretch:
    """The weights of one step from level s to level t, over a length h in lambda.

    x_t = keep x_s + first D0 + second D1 + third D2 + fresh noise: D0 is what is predicted at s, D1 and D2 its first
    and second differences, scaled with h and h**2. ``half`` is the midpoint rule's in the place of second.
    """

    keep: float
    first: float
    second: float
    half: float
    third: float
    fresh: float


def stretch(algorithm: str, signal: Signal, s: int, t: int) -> Stretch:
    """The weights for one of diffusers' four algorithm types; a step to no noise is of first order.

    dpmsolver++ and its SDE form integrate x_0 (arXiv:2211.01095, appendix A and equation 14), dpmsolver and its SDE
    form the noise (arXiv:2206.00927). sde-dpmsolver has no third order; the one of sde-dpmsolver++ is diffusers',
    which has a sign wrong and converges with the first order only.

    Raises RequestError where a noise prediction is to step to no noise.
    """
    alpha, sigma, h = signal.alpha[t], signal.sigma[t], signal.lambdas[t] - signal.lambdas[s]
    last = sigma == 0
    if algorithm == "dpmsolver++":
        keep, fresh = sigma / signal.sigma[s], 0.0
        first, second, third = _integrals(-alpha, -h, last)
    elif algorithm == "sde-dpmsolver++":
        keep, fresh = sigma / signal.sigma[s] * exp(-h), sigma * sqrt(-expm1(-2 * h))
        first, second, third = _integrals(-alpha, -2 * h, last)
        # The half has the other sign in the integral; as diffusers has it, the third order is none.
        third -= 0.0 if last else alpha
    elif last:
        raise RequestError(f"{algorithm} cannot step to no noise: set final_sigmas_type to sigma_min")
    elif algorithm == "dpmsolver":
        keep, fresh = signal.alpha[t] / signal.alpha[s], 0.0
        first, second, third = _integrals(-sigma, h, last)
    else:
        keep, fresh = signal.alpha[t] / signal.alpha[s], sigma * sqrt(expm1(2 * h))
        first, second, third = _integrals(-2 * sigma, h, last)
    return Stretch(keep, first, second, first / 2, third, fresh)


def _integrals(scale: float, z: float, last: bool) -> tuple[float, float, float]:
    """``scale`` times the integrals of the exponential over a constant, a line and a parabola."""
    grow = expm1(z)
    if last or z == 0:
        return scale * grow, 0.0, 0.0
    return scale * grow, scale * (grow / z - 1), scale * ((grow - z) / z**2 - 0.5)


def predicted(
    config: SamplerConfig, kind: PredictionType, x: Row, output: Row, signal: Signal, i: int
) -> Row:
    """What the algorithm integrates: x_0, or the noise."""
    x0, eps = predict(kind, x, output, signal.alpha[i], signal.sigma[i])
    return eps if config.algorithm_type in ("dpmsolver", "sde-dpmsolver") else x0


def with_fresh_noise(x: Row, weights: Stretch) -> Row:
    return x + weights.fresh * NOISE if weights.fresh else x
