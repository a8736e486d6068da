"""Requests at random times, and the objective by which each should be finished."""

from __future__ import annotations

import random
from collections.abc import Hashable
from dataclasses import dataclass

from sd2rt.runtime.scheduling.work import Priority, Work

H200 = {1: 0.167, 2: 0.183, 3: 0.186, 4: 0.240, 8: 0.425, 16: 0.832}
"""Seconds of a step by batch on an H200, as published for SGLang."""
LINEAR = {batch: batch * 0.0127 for batch in (1, 2, 4, 8)}
"""Seconds of a step where batches do not pay, as on a CPU."""
STEPS = (4, 20, 20, 30, 50)
OBJECTIVE = 3.0
"""In times of a request's own time: alone, in batches of 1."""
CLASSES = {Priority.INTERACTIVE: 0.2, Priority.NORMAL: 0.6, Priority.BATCH: 0.2}
"""Shares of requests with several priorities."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One image. Requests are compared by identity: several may be alike."""

    at: float
    steps: int
    own_seconds: float
    """Its time alone, in batches of 1."""
    priority: Priority = Priority.NORMAL

    @property
    def objective(self) -> float:
        """Time by which it should be finished."""
        return self.at + OBJECTIVE * self.own_seconds

    def work(self, key: Hashable = None, deadline: bool = False) -> Work:
        return Work(
            lane="lane",
            group=self,
            arrival=self.at,
            steps_left=self.steps,
            priority=self.priority,
            key=key,
            deadline=self.objective if deadline else None,
        )


def poisson(count: int, rate: float, step_seconds: float, seed: int, classes: bool = False) -> list[Request]:
    """Requests in order of time.

    Args:
        rate: in times of what batches of 1 can do.
        classes: draw priorities by :data:`CLASSES`.
    """
    drawn, now, requests = random.Random(seed), 0.0, list[Request]()
    mean = step_seconds * sum(STEPS) / len(STEPS)
    for _ in range(count):
        now += drawn.expovariate(rate / mean)
        steps = drawn.choice(STEPS)
        priority = drawn.choices(list(CLASSES), list(CLASSES.values()))[0] if classes else Priority.NORMAL
        requests.append(Request(now, steps, steps * step_seconds, priority))
    return requests


def flood(count: int, others: int, step_seconds: float, seed: int) -> tuple[list[Request], list[Request]]:
    """Return ``count`` requests at once, and others that come one after another while those would be served."""
    drawn = random.Random(seed)

    def request(at: float) -> Request:
        steps = drawn.choice(STEPS)
        return Request(at, steps, steps * step_seconds)

    flooding = [request(0.0) for _ in range(count)]
    whole = sum(each.own_seconds for each in flooding)
    return flooding, [request(whole * drawn.random() / 2) for _ in range(others)]
