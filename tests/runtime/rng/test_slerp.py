from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd2rt.runtime.rng.slerp import slerp
from sd2rt.runtime.rng.torch_cpu import Generator

FIRST, SECOND = Generator(1).randn((4, 8, 8)), Generator(2).randn((4, 8, 8))


def angle(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    # Rounding can make the cosine slightly larger than 1.
    return math.acos(min(1.0, float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))))


def test_ends_are_exact() -> None:
    assert slerp(FIRST, SECOND, 0) is FIRST
    assert slerp(FIRST, SECOND, 1) is SECOND


@settings(deadline=None)
@given(strength=st.floats(0, 1))
def test_turns_evenly_and_keeps_its_length(strength: float) -> None:
    # With equal lengths the path is a circle.
    second = SECOND * np.float32(np.linalg.norm(FIRST) / np.linalg.norm(SECOND))
    mixed = slerp(FIRST, second, strength)
    assert mixed.dtype == np.float32
    assert mixed.shape == FIRST.shape
    assert angle(FIRST, mixed) == pytest.approx(strength * angle(FIRST, second), abs=2e-3)
    assert np.linalg.norm(mixed) == pytest.approx(np.linalg.norm(FIRST), rel=1e-5)


def test_the_formula() -> None:
    whole = angle(FIRST, SECOND)
    expected = (math.sin(0.7 * whole) * FIRST + math.sin(0.3 * whole) * SECOND) / math.sin(whole)
    np.testing.assert_allclose(slerp(FIRST, SECOND, 0.3), expected, atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 1.5, -1.0])
def test_parallel_noises_are_mixed_in_a_straight_line(factor: float) -> None:
    second = FIRST * np.float32(factor)
    np.testing.assert_allclose(slerp(FIRST, second, 0.25), FIRST * (0.75 + 0.25 * factor), atol=1e-6)
