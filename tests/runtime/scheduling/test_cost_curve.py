"""Costs by batch size: medians, interpolation, the smallest batch that is nearly best."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd2rt.runtime.scheduling.cost_curve import CostCurve

H200 = {1: 0.167, 2: 0.183, 3: 0.186, 4: 0.240, 8: 0.425, 16: 0.832}
CURVES = st.dictionaries(st.integers(1, 32), st.floats(1e-4, 10), min_size=1)


def curve_of(costs: dict[int, float]) -> CostCurve:
    curve = CostCurve()
    for batch, seconds in costs.items():
        curve.measure(batch, seconds)
    return curve


def test_nothing_measured() -> None:
    assert CostCurve().seconds(1) is None
    assert CostCurve().best_batch(8) == 1
    assert CostCurve().measured == {}


@pytest.mark.parametrize(
    ("limit", "best"), [(1, 1), (2, 2), (3, 3), (4, 3), (7, 3), (8, 8), (16, 8), (99, 8)]
)
def test_best_batch_of_a_gpu(limit: int, best: int) -> None:
    """An image costs 0.062 s at 3, 0.060 at 4, 0.053 at 8 and 0.052 at 16."""
    assert curve_of(H200).best_batch(limit) == best


def test_best_batch_of_a_cpu() -> None:
    costs = {batch: batch * each for batch, each in ((1, 12.7e-3), (2, 12.7e-3), (4, 12.1e-3), (8, 12.9e-3))}
    assert curve_of(costs).best_batch(16) == 1


@given(CURVES, st.integers(1, 40))
def test_best_batch_is_the_smallest_that_is_nearly_best(costs: dict[int, float], limit: int) -> None:
    best = curve_of(costs).best_batch(limit)
    each = {size: seconds / size for size, seconds in costs.items() if size <= limit}
    if not each:
        assert best == 1
        return
    bound = 1.05 * min(each.values())
    assert each[best] <= bound
    assert all(cost > bound for size, cost in each.items() if size < best)


@given(CURVES, st.integers(1, 64))
def test_interpolation(costs: dict[int, float], batch: int) -> None:
    seconds = curve_of(costs).seconds(batch)
    assert seconds is not None
    if batch in costs:
        assert seconds == costs[batch]
        return
    below = [size for size in costs if size < batch]
    above = [size for size in costs if size > batch]
    if below and above:
        ends = costs[max(below)], costs[min(above)]
        assert min(ends) * (1 - 1e-9) <= seconds <= max(ends) * (1 + 1e-9)
    else:
        nearest = max(below) if below else min(above)
        assert seconds == pytest.approx(costs[nearest] * batch / nearest)


@given(st.integers(0, 2**32), st.lists(st.integers(0, 8), max_size=4, unique=True))
def test_outliers_do_not_count(seed: int, outliers: list[int]) -> None:
    """Four of nine calls may take any time."""
    drawn = random.Random(seed)
    curve = CostCurve()
    for index in range(9):
        curve.measure(2, drawn.uniform(5, 500) if index in outliers else drawn.uniform(0.9, 1.1))
    seconds = curve.seconds(2)
    assert seconds is not None
    assert 0.9 <= seconds <= 1.1


def test_a_changed_speed_counts_soon() -> None:
    curve = CostCurve()
    for _ in range(100):
        curve.measure(1, 1.0)
    for _ in range(5):
        curve.measure(1, 2.0)
    assert curve.seconds(1) == 2.0
