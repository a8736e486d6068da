"""The order in which jobs start."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sd2rt.runtime.scheduling.waiting_queue import WaitingQueue, level
from sd2rt.runtime.scheduling.work import Priority, Work

AGEING = 10.0


def work(**fields: Any) -> Work:
    return Work(**{"lane": 0, "group": object(), "arrival": 0.0, "steps_left": 20, **fields})


def queue_of(*works: Work) -> WaitingQueue[Work]:
    queue = WaitingQueue[Work](AGEING, lambda each: each.steps_left / 20)
    for each in works:
        queue.add(each)
    return queue


def started(queue: WaitingQueue[Work], now: float) -> list[Work]:
    """Start all ready works, one after another."""
    order = []
    while (each := queue.pick(now)) is not None:
        queue.start(each, now)
        order.append(each)
    return order


WORKS = st.lists(
    st.builds(
        work,
        arrival=st.integers(0, 60),
        priority=st.sampled_from(Priority),
        key=st.sampled_from([None, "a", "b"]),
        deadline=st.none() | st.integers(0, 200),
        ready=st.booleans(),
        steps_left=st.integers(1, 60),
    ),
    max_size=12,
)


def test_priority_comes_before_deadline_and_arrival() -> None:
    batch = work(priority=Priority.BATCH, deadline=1.0)
    normal = work(arrival=1.0)
    interactive = work(priority=Priority.INTERACTIVE, arrival=2.0)
    assert started(queue_of(batch, normal, interactive), 2.0) == [interactive, normal, batch]


def test_earliest_deadline_then_arrival() -> None:
    late, soon, none, older = (
        work(deadline=90.0), work(deadline=50.0), work(arrival=2.0), work(arrival=1.0),
    )  # fmt: skip
    assert started(queue_of(none, late, older, soon), 3.0) == [soon, late, older, none]


def test_a_missed_deadline_no_longer_counts() -> None:
    missed, met = work(arrival=1.0, deadline=3.0), work(arrival=2.0, deadline=90.0)
    assert started(queue_of(missed, met), 2.5) == [missed, met]
    assert started(queue_of(missed, met), 3.5) == [met, missed]


def test_ageing() -> None:
    assert [level(2, seconds, AGEING) for seconds in (0.0, 9.9, 10.0, 20.0, 99.0)] == [2, 2, 1, 0, 0]
    old = work(priority=Priority.BATCH)
    new = work(priority=Priority.INTERACTIVE, arrival=19.0, deadline=25.0)
    assert started(queue_of(new, old), 19.5) == [new, old]
    assert started(queue_of(new, old), 29.0) == [old, new][::-1]
    assert started(queue_of(new, old), 30.0) == [old, new], "not overtaken any more after three times"


def test_callers_alternate_whatever_one_of_them_asks_for() -> None:
    flood = [work(key="a") for _ in range(6)]
    few = [work(key="b", arrival=1.0), work(key="b", arrival=1.0)]
    order = started(queue_of(*flood, *few), 2.0)
    assert [each.key for each in order[:4]] == ["a", "b", "a", "b"]


def test_callers_pay_by_steps() -> None:
    long = [work(key="a", steps_left=60) for _ in range(4)]
    short = [work(key="b", steps_left=20) for _ in range(12)]
    order = started(queue_of(*long, *short), 0.0)
    assert [each.key for each in order[:8]].count("a") == 2


def test_a_closed_loop_is_not_disadvantaged() -> None:
    """A caller that asks for an image after each one gets every second place beside one that asked for a hundred."""
    queue = queue_of(*(work(key="flood") for _ in range(100)))
    keys = []
    closed = work(key="loop")
    queue.add(closed)
    for _ in range(20):
        each = queue.pick(0.0)
        assert each is not None
        queue.start(each, 0.0)
        keys.append(each.key)
        queue.end(each)
        if each.key == "loop":
            queue.add(work(key="loop"))
    assert keys.count("loop") == 10


def test_a_refund_is_a_turn_back() -> None:
    queue = queue_of(*(work(key=key) for key in "aabb"))
    first = queue.pick(0.0)
    assert first is not None
    queue.start(first, 0.0)
    queue.refund(first)
    queue.end(first)
    assert [each.key for each in started(queue, 0.0)] == ["a", "b", "b"]


def test_a_starving_caller_ages_and_a_served_one_does_not() -> None:
    batch = [work(key="batch", priority=Priority.BATCH) for _ in range(2)]
    queue = queue_of(*batch, *(work(key="others", priority=Priority.INTERACTIVE) for _ in range(40)))
    order = []
    for now in range(60):
        if now % 2 == 0 and (each := queue.pick(float(now))) is not None:
            queue.start(each, float(now))
            order.append((each.key, now))
    assert [now for key, now in order if key == "batch"] == [20, 40], "once in twice the time of ageing"


def test_old_works_in_great_number_give_no_precedence() -> None:
    queue = queue_of(*(work(key="flood") for _ in range(100)))
    now = 0.0
    for _ in range(20):
        each = queue.pick(now)
        assert each is not None
        queue.start(each, now)
        now += 5.0
    queue.add(new := work(key="new", arrival=now))
    assert new in started(queue, now)[:2]


def test_priorities_in_order() -> None:
    works = [work(priority=priority, key=key) for priority in (2, 1, 0, 1, 2) for key in "ab"]
    order = started(queue_of(*works), 1.0)
    assert [each.priority for each in order] == sorted(each.priority for each in works)


@given(WORKS, st.integers(0, 100))
def test_the_forecast_order_is_the_order(works: list[Work], now: int) -> None:
    queue = queue_of(*works)
    forecast = queue.order(float(now))
    assert queue.order(float(now)) == forecast, "asking changes nothing"
    order = started(queue, float(now))
    assert sorted(map(id, order)) == sorted(id(each) for each in works if each.ready)
    assert forecast == order


@given(WORKS, WORKS, st.integers(0, 100))
def test_further_works_are_forecast_as_if_they_were_added(
    works: list[Work], further: list[Work], now: int
) -> None:
    for each in further:
        each.ready = True
    forecast = queue_of(*works).order(float(now), further)
    assert set(forecast) == {each for each in (*works, *further) if each.ready}


@given(WORKS, st.integers(0, 100), st.integers(0, 3))
def test_only_eligible_and_more_urgent_jobs_are_picked(works: list[Work], now: int, above: int) -> None:
    eligible = set(works[::2])
    picked = queue_of(*works).pick(float(now), eligible, above)
    allowed = [each for each in eligible if each.ready and each.priority < above]
    assert (picked in allowed) if allowed else picked is None
