"""Update of DPM-Solver and DPM-Solver++, shared by the multistep and single-step methods."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, expm1, sqrt

from sd2rt.engines.bundle.sampler_config import PredictionType, SamplerConfig
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers.algebra import NOISE, Row, predict
from sd2rt.runtime.samplers.alpha_sigma import Signal


@dataclass(frozen=True, slots=True)
class StepWeights:
    """Weights of a step from level s to level t, over a length h in lambda.

    x_t = sample x_s + first D0 + second D1 + third D2 + noise eps. D0 is the prediction at s; D1 and D2 are its first
    and second differences, scaled by h and h**2. ``half`` replaces ``second`` in the midpoint rule.
    """

    sample: float
    first: float
    second: float
    half: float
    third: float
    noise: float


def step_weights(algorithm: str, signal: Signal, s: int, t: int) -> StepWeights:
    """Compute the weights for one of diffusers' four algorithm types; a step to noise level 0 is of first order.

    dpmsolver++ and its SDE form integrate x_0 (arXiv:2211.01095, appendix A and equation 14), dpmsolver and its SDE
    form integrate the noise (arXiv:2206.00927). sde-dpmsolver has no third order. The third order of
    sde-dpmsolver++ has diffusers' wrong sign and converges with order 1 only.

    Raises:
        RequestError: the algorithm integrates the noise, and the step ends at noise level 0.
    """
    alpha, sigma, h = signal.alpha[t], signal.sigma[t], signal.lambdas[t] - signal.lambdas[s]
    last = sigma == 0
    if algorithm == "dpmsolver++":
        sample, noise = sigma / signal.sigma[s], 0.0
        first, second, third = _integrals(-alpha, -h, last)
    elif algorithm == "sde-dpmsolver++":
        sample, noise = sigma / signal.sigma[s] * exp(-h), sigma * sqrt(-expm1(-2 * h))
        first, second, third = _integrals(-alpha, -2 * h, last)
        # The term alpha / 2 of the integral has the opposite sign in diffusers, which lowers its third order.
        third -= 0.0 if last else alpha
    elif last:
        raise RequestError(f"{algorithm} cannot step to noise level 0: set final_sigmas_type to sigma_min")
    elif algorithm == "dpmsolver":
        sample, noise = signal.alpha[t] / signal.alpha[s], 0.0
        first, second, third = _integrals(-sigma, h, last)
    else:
        sample, noise = signal.alpha[t] / signal.alpha[s], sigma * sqrt(expm1(2 * h))
        first, second, third = _integrals(-2 * sigma, h, last)
    return StepWeights(sample, first, second, first / 2, third, noise)


def _integrals(scale: float, z: float, last: bool) -> tuple[float, float, float]:
    """``scale`` times the integrals of the exponential times a constant, a line and a parabola."""
    growth = expm1(z)
    if last or z == 0:
        return scale * growth, 0.0, 0.0
    return scale * growth, scale * (growth / z - 1), scale * ((growth - z) / z**2 - 0.5)


def convert_output(
    config: SamplerConfig, kind: PredictionType, x: Row, output: Row, signal: Signal, i: int
) -> Row:
    """Convert the network's output to the quantity that the algorithm integrates: x_0 or the noise."""
    x0, eps = predict(kind, x, output, signal.alpha[i], signal.sigma[i])
    return eps if config.algorithm_type in ("dpmsolver", "sde-dpmsolver") else x0


def add_noise(x: Row, weights: StepWeights) -> Row:
    return x + weights.noise * NOISE if weights.noise else x
