"""The benchmark's own policies and workload, on requests that can be followed by hand."""

from __future__ import annotations

import pytest

from benchmarks.scheduling.policies import continuous, serial, static
from benchmarks.scheduling.simulation import curve_cost
from benchmarks.scheduling.workload import H200, LINEAR, Request, poisson

COST = curve_cost({1: 1.0, 2: 1.5, 4: 2.0})


def requests_of(*at_and_steps: tuple[float, int]) -> list[Request]:
    return [Request(at, steps, float(steps)) for at, steps in at_and_steps]


def test_costs_between_and_beyond_measured_sizes() -> None:
    assert [COST("lane", batch) for batch in (1, 2, 3, 4, 8)] == [1.0, 1.5, 1.75, 2.0, 4.0]


def test_serial() -> None:
    requests = requests_of((0, 3), (1, 2), (10, 1))
    assert list(serial(requests, COST).ends.values()) == [3.0, 5.0, 11.0]


def test_static_batches() -> None:
    requests = requests_of((0, 2), (1, 1), (1, 3))
    assert list(static(requests, COST).ends.values()) == [2.0, 3.5, 5.5]
    together = static(requests, COST, together=True)
    assert list(together.ends.values()) == [2.0, 6.5, 6.5]
    assert together.batches == [1, 1, 2, 2, 2]


def test_continuous_batches_let_requests_join() -> None:
    first, second = requests = requests_of((0, 3), (0.5, 1))
    served = continuous({1: 1.0, 2: 1.5}, estimates=True)(requests, COST)
    assert served.ends == {second: 2.5, first: 3.5}
    assert served.estimates == {first: 3.0, second: 2.0}


def test_refused_requests_have_no_end() -> None:
    requests = requests_of((0, 10), (0, 10), (0, 10), (0, 10))
    served = continuous({1: 1.0}, deadlines=True)(requests, COST)
    assert len(served.ends) == 3
    assert all(end <= each.objective for each, end in served.ends.items())


def test_on_a_linear_curve_the_scheduler_is_first_come_first_served() -> None:
    requests = poisson(200, 0.8, LINEAR[1], 3)
    cost = curve_cost(LINEAR)
    served = continuous(LINEAR)(requests, cost)
    assert set(served.batches) == {1}
    assert served.ends == pytest.approx(serial(requests, cost).ends)


def test_requests_are_drawn_from_the_seed() -> None:
    def drawn(seed: int) -> list[tuple[float, int]]:
        return [(each.at, each.steps) for each in poisson(500, 2.0, H200[1], seed)]

    assert drawn(7) == drawn(7) != drawn(8)
    requests = poisson(500, 2.0, H200[1], 7)
    offered = sum(each.own_seconds for each in requests) / requests[-1].at
    assert offered == pytest.approx(2.0, rel=0.15)
