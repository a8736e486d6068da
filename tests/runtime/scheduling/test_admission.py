"""Admission: bounded in images, all or nothing, deadlines by estimate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scheduling.simulation import curve_cost, end_times, simulate
from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.runtime.scheduling.admission import DeadlineUnreachableError, QueueFullError
from sd2rt.runtime.scheduling.scheduler import Scheduler
from sd2rt.runtime.scheduling.settings import Settings
from sd2rt.runtime.scheduling.work import Decode, Work

from .jobs import H200, run_of, work


def scheduler_of(max_images: int | None = None) -> Scheduler:
    scheduler = Scheduler(Settings(max_images=max_images))
    scheduler.calibrate(0, H200)
    return scheduler


def test_a_full_queue_states_when_there_is_room() -> None:
    scheduler = scheduler_of(3)
    scheduler.submit([work(5), work(20), work(20)], 0.0)
    with pytest.raises(
        QueueFullError, match=r"3 of at most 3 images are unfinished: try again in 0\.9 s"
    ) as full:
        scheduler.submit([work(5)], 0.0)
    assert full.value.wait_seconds == pytest.approx(5 * H200[3])
    assert isinstance(full.value, EngineError)
    with pytest.raises(QueueFullError) as full:
        scheduler.submit(run_of("run", [5, 5]), 0.0)
    assert full.value.wait_seconds == pytest.approx(5 * H200[3] + 15 * H200[2])
    assert (scheduler.images, scheduler.waiting) == (3, 3), "all or nothing"


def test_more_images_than_ever_fit() -> None:
    with pytest.raises(RequestError, match="4 images at once are more than the queue holds"):
        scheduler_of(3).submit(run_of("run", [1] * 4), 0.0)


def test_tiles_and_the_decode_of_an_image_are_one_image() -> None:
    scheduler = scheduler_of(2)
    scheduler.submit(run_of("tiled", [1] * 9, image="tiled"), 0.0)
    assert scheduler.images == 1
    scheduler.submit_decode(Decode(lane=0, group="tiled", arrival=0.0, image="tiled"))
    scheduler.submit([work(1)], 0.0)
    assert scheduler.images == 2
    with pytest.raises(QueueFullError):
        scheduler.submit([work(1)], 0.0)
    list(simulate(scheduler, [], curve_cost(H200), decode_seconds=0.1))
    assert scheduler.images == 0


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=30), st.integers(1, 6))
def test_never_more_than_admitted(changes: list[tuple[int, bool]], limit: int) -> None:
    scheduler, inside = scheduler_of(limit), list[Work]()
    for steps, leaves in changes:
        if leaves and inside:
            scheduler.leave(inside.pop(0))
        works = run_of(object(), [steps] * (steps % 3 + 1))
        try:
            scheduler.submit(works, 0.0)
        except (QueueFullError, RequestError):
            assert len(inside) + len(works) > limit
        else:
            inside += works
        assert scheduler.images == len(inside) <= limit


def test_a_deadline_out_of_reach_is_refused_at_once() -> None:
    scheduler = scheduler_of()
    with pytest.raises(
        DeadlineUnreachableError, match=r"finished in 3\.3 s, after its deadline in 3\.0 s"
    ) as refused:
        scheduler.submit([work(20, deadline=13.0, arrival=10.0)], 10.0)
    assert refused.value.wait_seconds == pytest.approx(20 * H200[1] - 3)
    assert scheduler.images == 0
    scheduler.submit([work(20, deadline=13.4, arrival=10.0)], 10.0)
    assert scheduler.images == 1


def test_without_measurements_no_deadline_is_refused() -> None:
    Scheduler().submit([work(1000, deadline=1e-6)], 0.0)


def test_an_urgent_deadline_passes_waiting_works() -> None:
    """The estimate follows the order in which works start."""
    scheduler = scheduler_of()
    scheduler.submit([work(20) for _ in range(100)], 0.0)
    scheduler.submit([work(20, deadline=20 * H200[8] + 0.1)], 0.0)
    with pytest.raises(DeadlineUnreachableError):
        scheduler.submit([work(20, deadline=20 * H200[8] - 0.1)], 0.0)


@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0.5, 4)), min_size=1, max_size=40))
def test_admitted_deadlines_are_met_if_no_more_urgent_ones_follow(images: list[tuple[int, float]]) -> None:
    """With exact costs, later images delay an admitted one only by making its calls larger."""
    scheduler, submissions, latest = scheduler_of(), list[tuple[float, list[Work]]](), 0.0
    for index, (steps, slack) in enumerate(images):
        at = index * 0.5
        latest = max(latest, at + steps * H200[1] * slack)
        submissions.append((at, [work(steps, arrival=at, deadline=latest)]))
    steps_of = {each: each.steps_left for _, [each] in submissions}
    refused = list[object]()
    calls = simulate(scheduler, submissions, curve_cost(H200), refused.append)
    for each, end in end_times(calls).items():
        assert each.deadline is not None
        assert end <= each.deadline + steps_of[each] * (H200[8] - H200[1]) + H200[8]


def test_a_work_needs_steps() -> None:
    with pytest.raises(ValueError, match="0 steps left"):
        scheduler_of().submit([work(0)], 0.0)


def test_a_work_is_submitted_once() -> None:
    scheduler, once = scheduler_of(), work(2)
    with pytest.raises(ValueError, match="twice"):
        scheduler.submit([once, once], 0.0)
    scheduler.submit([once], 0.0)
    with pytest.raises(ValueError, match="before"):
        scheduler.submit([once], 0.0)
    assert scheduler.images == scheduler.waiting == 1
