"""Rounded exact arithmetic, compared with this machine's float32 and float64."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from .rounded_betas import DOUBLE, root, rounded

NUMBERS = st.floats(2**-30, 2**30)


@given(NUMBERS, NUMBERS, st.sampled_from([-1, 1]))
def test_rounding_is_ieee_s(above: float, below: float, sign: int) -> None:
    quotient = sign * Fraction(above) / Fraction(below)
    assert rounded(quotient, DOUBLE) == Fraction(sign * above / below)
    assert rounded(Fraction(sign * above)) == Fraction(float(np.float32(sign * above)))


@given(st.integers(2**24, 2**25))
def test_ties_go_to_the_even_number(number: int) -> None:
    assert rounded(Fraction(number)) == Fraction(float(np.float32(number)))


@given(NUMBERS)
def test_roots_are_ieee_s(number: float) -> None:
    single = np.float32(number)
    assert root(Fraction(float(single))) == Fraction(float(np.sqrt(single)))
    assert root(Fraction(number), DOUBLE) == Fraction(float(np.sqrt(number)))


def test_nothing_is_nothing() -> None:
    assert rounded(Fraction(0)) == root(Fraction(0)) == 0
