"""A simulated device in virtual time: the real scheduler, with calls that cost what a curve says."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

from sd2rt.runtime.scheduling.admission import AdmissionError
from sd2rt.runtime.scheduling.scheduler import Scheduler
from sd2rt.runtime.scheduling.work import Call, Decode, Job, Work

Cost = Callable[[Hashable, int], float]
"""Seconds of a step by lane and batch."""


def curve_cost(curve: dict[int, float]) -> Cost:
    """Costs interpolated between the sizes of a curve; beyond them, an image costs what it does at the last."""
    sizes = sorted(curve)

    def cost(lane: Hashable, batch: int) -> float:
        if batch >= sizes[-1]:
            return curve[sizes[-1]] * batch / sizes[-1]
        above = next(size for size in sizes if size >= batch)
        below = max((size for size in sizes if size <= batch), default=above)
        if above == below:
            return curve[above]
        share = (batch - below) / (above - below)
        return (1 - share) * curve[below] + share * curve[above]

    return cost


@dataclass(frozen=True, slots=True)
class Made:
    """A call that was made."""

    call: Call
    start: float
    end: float
    finished: tuple[Work, ...]
    """Works that it finished."""


Submissions = Sequence[tuple[float, Sequence[Work]]]
"""Times and works, in order of time."""


def simulate(
    scheduler: Scheduler,
    submissions: Submissions,
    cost: Cost,
    refused: Callable[[Sequence[Work]], object] | None = None,
    decode_seconds: float | None = None,
    submitting: Callable[[Sequence[Work], float], object] | None = None,
) -> Iterator[Made]:
    """Submit works at their times, and make calls until none is left; yield each call.

    Args:
        refused: called with works that are not admitted; without it, the error is raised.
        decode_seconds: cost of decoding each finished work; None for no decodes.
        submitting: called with works and the time before they are submitted.
    """
    now, position = 0.0, 0

    def submit_until(time: float) -> None:
        nonlocal position
        while position < len(submissions) and submissions[position][0] <= time:
            at, works = submissions[position]
            position += 1
            if submitting is not None:
                submitting(works, at)
            try:
                scheduler.submit(works, at)
            except AdmissionError:
                if refused is None:
                    raise
                refused(works)

    while True:
        submit_until(now)
        call = scheduler.next_call(now)
        if call is None:
            if position == len(submissions):
                return
            now = submissions[position][0]
            continue
        start = now
        if call.decode is not None:
            assert decode_seconds is not None
            now += decode_seconds
        else:
            now += cost(call.lane, len(call.works))
        # Works arrive while a call is under way.
        submit_until(now)
        finished = scheduler.done(call, now - start, now)
        if decode_seconds is not None:
            for work in finished:
                shared = {each.name: getattr(work, each.name) for each in fields(Job)}
                scheduler.submit_decode(Decode(**shared))
        yield Made(call, start, now, tuple(finished))


def end_times(calls: Iterable[Made]) -> dict[Work, float]:
    """Time at which each work was finished."""
    return {work: made.end for made in calls for work in made.finished}
