"""Estimates against what happens in virtual time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scheduling.simulation import curve_cost, simulate
from sd2rt.runtime.scheduling.forecast import finish_times
from sd2rt.runtime.scheduling.lane import Lane
from sd2rt.runtime.scheduling.scheduler import Scheduler
from sd2rt.runtime.scheduling.settings import Settings
from sd2rt.runtime.scheduling.work import Priority, Work

from .jobs import H200, run_of, work

STEPS = st.lists(st.integers(1, 50), min_size=1, max_size=30)


def lane_of(works: list[Work], **settings: Any) -> Lane:
    lane = Lane(Settings(**settings))
    for batch, seconds in H200.items():
        lane.curve.measure(batch, seconds)
    for each in works:
        lane.add(each)
    return lane


@given(STEPS, st.integers(2, 8), st.integers(0, 60), st.randoms(use_true_random=False))
def test_finishing_times_of_a_lane_are_exact(steps: list[int], limit: int, made: int, drawn: Any) -> None:
    """At any moment, with priorities, callers and deadlines, if no others come and nothing ages."""
    works = [
        work(
            each,
            priority=drawn.choice(list(Priority)),
            key=drawn.choice("ab"),
            deadline=drawn.choice((None, 1e6, 2e6)),
        )
        for each in steps
    ]
    lane, cost = lane_of(works, max_batch=limit, ageing_seconds=1e9), curve_cost(H200)
    for _ in range(made):
        lane.advance(lane.call(0.0))
    forecast, actual, now = finish_times(lane, 0.0), dict[Work, float](), 0.0
    while chosen := lane.call(0.0):
        now += cost(0, len(chosen))
        actual |= dict.fromkeys(lane.advance(chosen), now)
    assert forecast == pytest.approx(actual)


@given(st.lists(STEPS, min_size=1, max_size=5))
def test_runs_that_follow_each_other(runs: list[list[int]]) -> None:
    works = [each for steps in runs for each in run_of(object(), steps)]
    lane, now, actual = lane_of(works), 0.0, dict[Work, float]()
    forecast, cost = finish_times(lane, 0.0), curve_cost(H200)
    while chosen := lane.call(0.0):
        now += cost(0, len(chosen))
        actual |= dict.fromkeys(lane.advance(chosen), now)
    assert forecast == pytest.approx(actual)


LANES = {"a": 1.0, "b": 0.1, "c": 3.0}
"""With their cost of a step over the first one's."""


@given(
    st.lists(st.tuples(st.sampled_from(sorted(LANES)), st.integers(1, 50)), min_size=1, max_size=30),
    st.floats(0, 1),
)
def test_estimates_over_lanes_and_decodes(images: list[tuple[str, int]], decode: float) -> None:
    """Right within 10 %, a turn of each lane, and two decodes, which come in another order than assumed."""
    unit = curve_cost(H200)

    def cost(lane: object, batch: int) -> float:
        return LANES[str(lane)] * unit(lane, batch)

    scheduler = Scheduler(Settings(max_batch=8, ageing_seconds=1e9))
    for lane in LANES:
        scheduler.calibrate(lane, {batch: cost(lane, batch) for batch in range(1, 9)})
        warm = work(1, lane=lane)
        list(simulate(scheduler, [(0.0, [warm])], cost, decode_seconds=decode))
    works = [work(steps, lane=lane) for lane, steps in images]
    estimates = scheduler.finish_estimate(works, 0.0)
    decoded = {
        made.call.decode.image: made.end
        for made in simulate(scheduler, [(0.0, works)], cost, decode_seconds=decode)
        if made.call.decode is not None
    }
    slack = 2 * 4 * cost("c", 8) * len(LANES) + 2 * decode
    last = max(estimates.values())
    assert abs(last - max(decoded.values())) <= 0.1 * last + slack


def test_the_wait_of_a_new_image() -> None:
    scheduler = Scheduler(Settings())
    assert scheduler.wait_estimate(0.0) == 0.0
    scheduler.calibrate(0, H200)
    scheduler.submit([work(10) for _ in range(7)], 0.0)
    assert scheduler.wait_estimate(0.0) == 0.0, "a batch of eight has a place"
    scheduler.submit([work(30) for _ in range(9)], 0.0)
    assert scheduler.wait_estimate(0.0) == pytest.approx(40 * H200[8])
    assert scheduler.wait_estimate(0.0, priority=Priority.INTERACTIVE) == 0.0
    assert scheduler.wait_estimate(0.0, lane="another") == pytest.approx(0.0)


def test_works_that_are_not_ready_count_as_nothing() -> None:
    scheduler = Scheduler(Settings())
    scheduler.calibrate(0, {1: 1.0})
    paused = work(50)
    paused.ready = False
    scheduler.submit([paused, work(3)], 0.0)
    assert scheduler.wait_estimate(0.0) == 3.0
