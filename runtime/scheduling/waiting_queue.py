"""Waiting jobs, and the order in which they start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable, Iterator
from math import inf
from typing import Generic, TypeVar

from sd2rt.runtime.scheduling.deficit_ring import DeficitRing
from sd2rt.runtime.scheduling.work import Job, Priority

AnyJob = TypeVar("AnyJob", bound=Job)

_Rank = tuple[int, float, float, int]
_LEAST = len(Priority)
"""A level below all others."""


def level(priority: int, seconds: float, ageing_seconds: float) -> int:
    """Urgency, 0 for the most urgent: a priority, less one for each ``ageing_seconds`` of ``seconds``."""
    return max(0, priority - int(max(0.0, seconds) / ageing_seconds))


class WaitingQueue(Generic[AnyJob]):
    """Jobs ordered by urgency, fairness over callers, deadline and arrival.

    Urgency grows with the time since a job's arrival among the jobs of its caller, but between callers only with the
    time since its caller was last served: old jobs in great number give a caller no precedence.

    A caller is a member of the ring while any of its jobs is unfinished; one that comes back joins at the end.

    Args:
        cost: a job's cost in quanta of its caller's turn.
    """

    def __init__(self, ageing_seconds: float, cost: Callable[[AnyJob], float]) -> None:
        self._ageing, self._cost = ageing_seconds, cost
        self._waiting: dict[AnyJob, int] = {}
        """With their numbers, in order of submission."""
        self._number = 0
        self._priorities: Counter[int] = Counter()
        self._ring: DeficitRing[Hashable] = DeficitRing()
        self._unfinished: Counter[Hashable] = Counter()
        self._served: dict[Hashable, float] = {}
        """Time at which each caller's last job started."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[AnyJob]:
        return iter(self._waiting)

    def __contains__(self, job: object) -> bool:
        return job in self._waiting

    def add(self, job: AnyJob) -> None:
        """Add a job, behind equal ones."""
        self._waiting[job] = self._number
        self._number += 1
        self._priorities[job.priority] += 1
        self._unfinished[job.key] += 1
        self._ring.add(job.key)

    def start(self, job: AnyJob, now: float) -> int:
        """Remove a job from the queue, charge its caller, and return the urgency with which it starts."""
        claim = self._claim(job, now)
        self._remove(job)
        self._ring.charge(job.key, self._cost(job))
        self._served[job.key] = now
        return claim

    def refund(self, job: AnyJob) -> None:
        """Refund what a started job that leaves would still have cost."""
        self._ring.charge(job.key, -self._cost(job))

    def end(self, job: AnyJob) -> None:
        """Forget a job that has finished or leaves."""
        if job in self._waiting:
            self._remove(job)
        self._unfinished[job.key] -= 1
        if not self._unfinished[job.key]:
            del self._unfinished[job.key]
            self._served.pop(job.key, None)
            self._ring.discard(job.key)

    def _remove(self, job: AnyJob) -> None:
        del self._waiting[job]
        self._priorities[job.priority] -= 1

    def any_above(self, urgency: int) -> bool:
        """True if a waiting job's own priority is more urgent than a level."""
        return any(self._priorities[priority] for priority in range(urgency))

    def pick(
        self, now: float, eligible: Container[AnyJob] | None = None, above: int | None = None
    ) -> AnyJob | None:
        """Return the ready job that starts next, or None. The caller must start it.

        Args:
            eligible: jobs that may be picked; None for all.
            above: pick only jobs whose own priority is more urgent than this level, whatever their age.
        """
        claims: dict[Hashable, int] = {}
        first: dict[Hashable, tuple[_Rank, AnyJob]] = {}
        for job in self._waiting:
            if not job.ready or (above is not None and job.priority >= above):
                continue
            if eligible is not None and job not in eligible:
                continue
            claims[job.key] = min(claims.get(job.key, _LEAST), self._claim(job, now))
            rank = self._rank(job, now)
            if job.key not in first or rank < first[job.key][0]:
                first[job.key] = rank, job
        if not claims:
            return None
        most_urgent = min(claims.values())
        return first[self._ring.pick({key for key, claim in claims.items() if claim == most_urgent})][1]

    def order(self, now: float, further: Iterable[AnyJob] = ()) -> list[AnyJob]:
        """Order in which the ready jobs would start if all of them could now.

        Args:
            further: jobs that are not in the queue, as if they were added.
        """
        ring, callers = self._ring.copy(), dict[Hashable, list[AnyJob]]()
        for job in (*(job for job in self._waiting if job.ready), *further):
            callers.setdefault(job.key, []).append(job)
        by_claim: dict[int, set[Hashable]] = {claim: set() for claim in range(_LEAST)}
        for key, jobs in callers.items():
            ring.add(key)
            by_claim[min(self._claim(job, now) for job in jobs)].add(key)
            # The last of a list is its caller's first.
            jobs.sort(key=lambda job: self._rank(job, now), reverse=True)
        priorities = {key: Counter(int(job.priority) for job in jobs) for key, jobs in callers.items()}
        ordered: list[AnyJob] = []
        while keys := next((keys for keys in by_claim.values() if keys), None):
            key = ring.pick(keys)
            keys.remove(key)
            job = callers[key].pop()
            ordered.append(job)
            ring.charge(key, self._cost(job))
            priorities[key] -= Counter((int(job.priority),))
            if callers[key]:
                by_claim[min(priorities[key])].add(key)
            else:
                ring.discard(key)
        return ordered

    def _claim(self, job: AnyJob, now: float) -> int:
        """Urgency between callers."""
        since = max(job.arrival, self._served.get(job.key, job.arrival))
        return level(job.priority, now - since, self._ageing)

    def _rank(self, job: AnyJob, now: float) -> _Rank:
        """Order among the jobs of one caller; those that waited longest are not overtaken any more."""
        number = self._waiting.get(job, self._number)
        age = now - job.arrival
        if age >= (job.priority + 1) * self._ageing:
            return 0, 0.0, job.arrival, number
        # A deadline that has passed helps nobody if it makes others pass too.
        deadline = job.deadline if job.deadline is not None and job.deadline > now else inf
        return 1 + level(job.priority, age, self._ageing), deadline, job.arrival, number
