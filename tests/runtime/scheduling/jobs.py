"""Works for tests, and the batches that a run has alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.scheduling.simulation import Made
from sd2rt.runtime.scheduling.work import Work

H200 = {1: 0.167, 2: 0.183, 3: 0.186, 4: 0.240, 8: 0.425, 16: 0.832}
"""Seconds of a step by batch, as published for SGLang."""


def work(steps_left: int = 5, **fields: Any) -> Work:
    """A work in a run of its own, unless ``group`` is given."""
    return Work(**{"lane": 0, "group": object(), "arrival": 0.0, **fields, "steps_left": steps_left})


def run_of(group: object, steps: Iterable[int], **fields: Any) -> list[Work]:
    return [work(each, group=group, **fields) for each in steps]


def batches_alone(steps: Sequence[int], max_batch: int) -> list[list[int]]:
    """The batches of the step loop for one run, as positions in it: when one ends, the next waiting one joins."""
    waiting, active, left = deque(range(len(steps))), list[int](), list(steps)
    batches = list[list[int]]()
    while True:
        active = [each for each in active if left[each]]
        active += [waiting.popleft() for _ in range(min(len(waiting), max_batch - len(active)))]
        if not active:
            return batches
        batches.append(list(active))
        for each in active:
            left[each] -= 1


def batches_of(calls: Iterable[Made], works: Sequence[Work]) -> list[list[int]]:
    """The batches of one run in simulated calls, as positions in it."""
    position = {each: index for index, each in enumerate(works)}
    batches = [[position[each] for each in made.call.works if each in position] for made in calls]
    return [batch for batch in batches if batch]
