"""Betas of correctly rounded float32 operations, computed in exact arithmetic: the reference for all samplers.

diffusers computes betas with PyTorch, whose linspace rounds once or twice, depending on the processor, and whose
square root is MKL's, which is not correctly rounded. Here each operation is done on fractions and rounded once to
float32, to nearest, ties to even (IEEE 754). The fused multiply-add of linspace is one operation.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, pairwise
from math import isqrt

from sd2rt.engines.bundle.sampler_config import NoiseConfig

SINGLE, DOUBLE = 24, 53
"""Binary digits of float32 and float64. No number here is near the limits of their exponents."""


def rounded_betas(noise: NoiseConfig) -> tuple[float, ...]:
    """Compute the beta of each training timestep, a float32 number."""
    return _betas(
        noise.num_train_timesteps,
        noise.beta_start,
        noise.beta_end,
        noise.beta_schedule == "scaled_linear",
        noise.rescale_betas_zero_snr,
    )


@lru_cache(maxsize=64)
def _betas(count: int, start: float, end: float, scaled: bool, zero_snr: bool) -> tuple[float, ...]:
    first, last = Fraction(start), Fraction(end)
    if scaled:
        # diffusers passes linspace roots computed by Python in float64.
        betas = [rounded(each * each) for each in linspace(root(first, DOUBLE), root(last, DOUBLE), count)]
    else:
        betas = linspace(first, last, count)
    return tuple(map(float, without_signal_at_the_end(betas) if zero_snr else betas))


def linspace(start: Fraction, end: Fraction, count: int) -> list[Fraction]:
    """Formula of ``torch.linspace``: steps from the nearer end, each value by one fused multiply-add."""
    first, last = rounded(start), rounded(end)
    step = rounded(rounded(last - first) / max(count - 1, 1))
    middle = max(count // 2, 1)
    rising = [rounded(first + step * index) for index in range(middle)]
    return rising + [rounded(last - step * (count - 1 - index)) for index in range(middle, count)]


def without_signal_at_the_end(betas: list[Fraction]) -> list[Fraction]:
    """diffusers' rescale_zero_terminal_snr (algorithm 1 of arXiv:2305.08891).

    torch.cumprod multiplies float32 numbers in float64, and rounds each product to float32 when storing it.
    """
    alphas = [rounded(1 - beta) for beta in betas]
    products = accumulate(alphas, lambda product, alpha: rounded(product * alpha, DOUBLE))
    signals = [root(rounded(product)) for product in products]
    first, last = signals[0], signals[-1]
    scale = rounded(first / rounded(first - last))
    scaled = [rounded(rounded(signal - last) * scale) for signal in signals]
    cumprods = [rounded(signal * signal) for signal in scaled]
    ratios = [rounded(after / before) for before, after in pairwise(cumprods)]
    return [rounded(1 - alpha) for alpha in (cumprods[0], *ratios)]


def rounded(value: Fraction, digits: int = SINGLE) -> Fraction:
    """Round to this many binary digits, ties to even."""
    above, below = value.numerator, value.denominator
    shift = digits - abs(above).bit_length() + below.bit_length()
    if abs(above) << max(shift, 0) >= below << digits + max(-shift, 0):
        shift -= 1  # The quotient would have one digit more.
    return Fraction(_nearest(above << max(shift, 0), below << max(-shift, 0)), 1) / Fraction(2) ** shift


def _nearest(above: int, below: int) -> int:
    whole, rest = divmod(above, below)
    return whole + (2 * rest > below or (2 * rest == below and whole % 2 == 1))


def root(value: Fraction, digits: int = SINGLE) -> Fraction:
    """Square root, rounded to this many binary digits."""
    places = 2 * digits + value.denominator.bit_length()
    above = value.numerator << 2 * places
    whole = isqrt(above // value.denominator)
    # One extra digit represents all truncated ones: rounding only depends on whether there are any.
    cut = whole * whole * value.denominator != above
    return rounded(Fraction(2 * whole + cut, 2 ** (places + 1)), digits)
