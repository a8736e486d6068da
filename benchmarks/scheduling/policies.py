"""Ways to serve requests, in virtual time: the scheduler, and two that are common elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from benchmarks.scheduling.simulation import Cost, simulate
from benchmarks.scheduling.workload import Request
from sd2rt.runtime.scheduling.scheduler import Scheduler
from sd2rt.runtime.scheduling.settings import Settings
from sd2rt.runtime.scheduling.work import Work


@dataclass(slots=True)
class Served:
    """Results of a policy."""

    ends: dict[Request, float]
    """Time at which each request was finished; refused ones are missing."""
    batches: list[int] = field(default_factory=list)
    """Images of each call."""
    estimates: dict[Request, float] = field(default_factory=dict)
    """Time at which each was expected to be finished when it was submitted."""


Policy = Callable[[Sequence[Request], Cost], Served]


def serial(requests: Sequence[Request], cost: Cost) -> Served:
    """First come, first served, one image at a time."""
    return static(requests, cost, 1)


def static(requests: Sequence[Request], cost: Cost, largest: int = 4, together: bool = False) -> Served:
    """Take up to ``largest`` requests that wait, and the next ones when all of these are finished.

    Args:
        together: the batch keeps its size, and all are answered at its end; else each when its own steps are made.
    """
    served, now, position = Served({}), 0.0, 0
    while position < len(requests):
        now = max(now, requests[position].at)
        batch = [each for each in requests[position : position + largest] if each.at <= now]
        position += len(batch)
        longest = max(each.steps for each in batch)
        for step in range(1, longest + 1):
            active = batch if together else [each for each in batch if each.steps >= step]
            now += cost("lane", len(active))
            served.batches.append(len(active))
            served.ends |= {each: now for each in active if step == (longest if together else each.steps)}
    return served


def continuous(
    costs: dict[int, float],
    deadlines: bool = False,
    settings: Settings | None = None,
    key: Callable[[Request], Hashable] = lambda request: None,
    estimates: bool = False,
) -> Policy:
    """The scheduler, calibrated with ``costs``.

    Args:
        deadlines: give each request its objective as a deadline, by which it may be refused.
        key: a request's caller.
        estimates: record estimates.
    """

    def policy(requests: Sequence[Request], cost: Cost) -> Served:
        scheduler = Scheduler(settings)
        scheduler.calibrate("lane", costs)
        of = {request.work(key(request), deadlines): request for request in requests}
        served = Served({})

        def estimate(works: Sequence[Work], now: float) -> None:
            for work, seconds in scheduler.finish_estimate(works, now).items():
                served.estimates[of[work]] = now + seconds

        submissions = [(request.at, [work]) for work, request in of.items()]
        for made in simulate(
            scheduler, submissions, cost, refused=lambda *_: None, submitting=estimate if estimates else None
        ):
            served.batches.append(len(made.call.works))
            served.ends |= {of[work]: made.end for work in made.finished}
        return served

    return policy
