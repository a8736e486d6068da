"""Works that share a call: continuous batching, runs apart on linear curves, suspended works."""

from __future__ import annotations

import random
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scheduling.simulation import Made, curve_cost, end_times, simulate
from sd2rt.runtime.scheduling.lane import Lane
from sd2rt.runtime.scheduling.scheduler import Scheduler
from sd2rt.runtime.scheduling.settings import Settings
from sd2rt.runtime.scheduling.work import Priority, Work

from .jobs import H200, batches_alone, batches_of, run_of, work

RUNS = st.lists(
    st.tuples(
        st.lists(st.integers(1, 12), min_size=1, max_size=7),
        st.integers(0, 40),
        st.sampled_from(Priority),
        st.sampled_from([None, "a", "b"]),
        st.none() | st.integers(20, 90),
    ),
    min_size=1,
    max_size=6,
)


def lane_of(*works: Work, max_batch: int | Literal["auto"] = "auto", **settings: Any) -> Lane:
    lane = Lane(Settings(max_batch=max_batch, **settings))
    for each in works:
        lane.add(each)
    return lane


def step(lane: Lane, now: float = 0.0) -> tuple[Work, ...]:
    """Make one call."""
    works = lane.call(now)
    lane.advance(works)
    return works


@given(RUNS, st.integers(1, 4), st.booleans())
def test_on_a_linear_curve_each_run_has_the_batches_it_has_alone(
    runs: list[tuple[list[int], int, Priority, str | None, int | None]], group_batch: int, preempt: bool
) -> None:
    submissions = [
        (float(at), run_of(object(), steps, arrival=float(at), priority=priority, key=key, deadline=deadline))
        for steps, at, priority, key, deadline in sorted(runs, key=lambda run: run[1])
    ]
    steps_of = [[each.steps_left for each in works] for _, works in submissions]
    scheduler = Scheduler(Settings(group_batch=group_batch, preempt=preempt, ageing_seconds=9.0))
    refused = list[object]()
    calls = list(simulate(scheduler, submissions, lambda lane, b: float(b), refused.append))
    assert all(len({each.group for each in made.call.works}) == 1 for made in calls)
    for (_, works), steps in zip(submissions, steps_of, strict=True):
        expected = [] if works in refused else batches_alone(steps, group_batch)
        assert batches_of(calls, works) == expected


@given(st.lists(st.integers(1, 6), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_batches_of_a_run_with_pauses(steps: list[int], drawn: random.Random) -> None:
    """A consumer that is slow, or another run between its steps, changes no batch."""
    ours, others = run_of("ours", steps), run_of("others", [3, 9, 2, 5])
    lane = lane_of(*ours, *others)
    batches = []
    while lane.unfinished:
        ready = drawn.random() < 0.5
        for each in ours:
            each.ready = ready
        works = step(lane)
        if works and works[0] in ours:
            assert ready
            batches.append([ours.index(each) for each in works])
        if not works:
            assert not ready
    assert batches == batches_alone(steps, 4)


def test_images_join_and_leave_between_steps() -> None:
    first, second, third = work(3), work(1), work(2)
    lane = lane_of(first, second, third, max_batch=2)
    assert [step(lane) for _ in range(3)] == [(first, second), (first, third), (first, third)]
    assert not lane.ready
    assert step(lane) == ()


def test_works_of_the_last_call_come_first() -> None:
    """The driver's batch takes over the states of the last one."""
    works = [work(9) for _ in range(3)]
    lane = lane_of(*works, max_batch=3)
    assert step(lane) == tuple(works)
    works[0].ready = False
    assert step(lane) == (works[1], works[2])
    works[0].ready = True
    assert step(lane) == (works[1], works[2], works[0])


@pytest.mark.parametrize("max_batch", [1, 2])
def test_a_work_that_is_not_ready_holds_back_itself_only(max_batch: int) -> None:
    slow, *others = (work(4, group=name) for name in "abc")
    slow.ready = False
    lane = lane_of(slow, *others, max_batch=max_batch)
    while works := step(lane):
        assert slow not in works
    assert lane.unfinished == 1
    slow.ready = True
    assert step(lane) == (slow,)


@pytest.mark.parametrize("max_batch", [1, 2])
def test_a_slow_consumer_takes_its_place_back(max_batch: int) -> None:
    slow, *others = (work(9, group=name) for name in "abcd")
    lane = lane_of(slow, *others, max_batch=max_batch)
    for _ in range(4):
        slow.ready = True
        assert slow in step(lane)
        slow.ready = False
        assert slow not in step(lane)
    assert slow.steps_left == 5


@pytest.mark.parametrize("max_batch", [1, 2])
def test_interactive_images_suspend_batch_images(max_batch: int) -> None:
    batch = [work(6, priority=Priority.BATCH) for _ in range(2)]
    lane = lane_of(*batch, max_batch=max_batch)
    assert batch[0] in step(lane)
    urgent = work(2, priority=Priority.INTERACTIVE)
    lane.add(urgent)
    calls = [step(lane) for _ in range(3)]
    assert [urgent in works for works in calls] == [True, True, False]
    assert all(batch[0] in works for works in calls) == (max_batch == 2), "the least urgent one yields"
    assert batch[0] in calls[2]


def test_without_preemption_running_images_go_on() -> None:
    lane = lane_of(running := work(3, priority=Priority.BATCH), preempt=False)
    step(lane)
    lane.add(urgent := work(1, priority=Priority.INTERACTIVE))
    assert [step(lane) for _ in range(3)] == [(running,), (running,), (urgent,)]


def test_aged_images_are_not_suspended() -> None:
    lane = lane_of(old := work(9, priority=Priority.BATCH), ageing_seconds=10.0)
    assert step(lane, 19.0) == (old,)
    lane.add(urgent := work(9, priority=Priority.INTERACTIVE, arrival=19.0))
    assert step(lane, 19.5) == (urgent,)
    assert step(lane, 28.9) == (urgent,)
    assert step(lane, 29.0) == (old,)
    lane.add(work(9, priority=Priority.INTERACTIVE, arrival=29.0))
    assert step(lane, 29.5) == (old,)


def test_halving_down_to_one_image() -> None:
    lane = lane_of(*(work(9, group=index // 4) for index in range(12)), max_batch=8)
    assert len(step(lane)) == 8
    assert lane.halve(8) == 4
    assert len(step(lane)) == 4
    assert lane.halve(3) == 1
    assert len(step(lane)) == 1
    assert lane.halve(1) == 1


def test_halving_batches_of_one_run() -> None:
    lane = lane_of(*(work(9, group="run") for _ in range(6)))
    assert len(step(lane)) == 4
    assert lane.halve(4) == 2
    assert len(step(lane)) == 2


def test_auto_follows_the_calibration_only() -> None:
    """On a CPU, noise in later measurements must not put different runs together."""
    scheduler = Scheduler(Settings())
    assert scheduler.calibrate(0, {1: 0.01, 4: 0.04}) == 1
    assert scheduler.calibrate(1, H200) == 8
    scheduler.submit([work(3) for _ in range(4)], 0.0)
    calls = list(simulate(scheduler, [], lambda lane, b: 0.01 / b))
    assert {len(made.call.works) for made in calls} == {1}


def test_a_left_image_makes_room() -> None:
    works = [work(9) for _ in range(3)]
    lane = lane_of(*works, max_batch=2)
    assert step(lane) == (works[0], works[1])
    lane.leave(works[0])
    assert step(lane) == (works[1], works[2])


def test_callers_share_a_lane_by_steps() -> None:
    """One asks for 40 images of 20 steps, another for 80 of 10: while both wait, each gets half of the steps."""
    scheduler = Scheduler(Settings(max_batch=2, ageing_seconds=1e6))
    works = [work(20, key="a") for _ in range(40)] + [work(10, key="b") for _ in range(80)]
    calls = list(simulate(scheduler, [(0.0, works)], curve_cost({1: 1.0, 2: 1.5})))
    ends = end_times(calls)
    both = min(max(ends[each] for each in works if each.key == key) for key in "ab")
    steps = {"a": 0, "b": 0}
    for made in calls:
        if made.end <= both:
            for each in made.call.works:
                steps[str(each.key)] += 1
    assert abs(steps["a"] - steps["b"]) <= 60
    assert min(steps.values()) > 700


def test_a_flood_of_one_caller_delays_another_by_two_images_at_most() -> None:
    flood = [work(20, key="flood") for _ in range(50)]
    few = [(float(at), [work(20, key="few", arrival=float(at))]) for at in range(10, 500, 60)]
    calls: list[Made] = list(simulate(Scheduler(), [(0.0, flood), *few], lambda lane, b: float(b)))
    ends = end_times(calls)
    assert max(ends[each] - at for at, [each] in few) <= 3 * 20
