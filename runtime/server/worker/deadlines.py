"""Deadlines that are out of reach: refused before anything is prepared."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic

from sd2rt.engines.bundle.part_interface import TEXT_LENGTH
from sd2rt.runtime.pipeline.pipeline import Pipeline
from sd2rt.runtime.scheduling.admission import DeadlineUnreachableError
from sd2rt.runtime.scheduling.work import Terms, Work
from sd2rt.runtime.server.worker.planning import PlannedGeneration


def require_reachable(
    pipeline: Pipeline, others: Iterable[Pipeline], planned: PlannedGeneration, terms: Terms
) -> None:
    """Check by the scheduler's estimate that a request can be finished before its deadline.

    Waits for a turn at the device. Costs that have not been measured count as nothing.

    Args:
        others: pipelines that share the device.

    Raises:
        DeadlineUnreachableError: it cannot.
    """
    if terms.deadline is None:
        return
    waiting = seconds_of(others)
    now = monotonic()
    latents = pipeline.manifest.latents
    shape = (latents.channels, *latents.sides(planned.width, planned.height))
    group = object()
    works = [
        Work(
            lane=(shape, TEXT_LENGTH),
            group=group,
            arrival=now,
            priority=terms.priority,
            key=terms.key,
            steps_left=len(each.plan.steps),
        )
        for each in planned.images
    ]
    loop = pipeline.step_loop
    with loop.turn():
        own = max(loop.scheduler.finish_estimate(works, now).values())
    # Pipelines take turns call by call.
    needed = own + min(own, waiting)
    if now + needed > terms.deadline:
        raise DeadlineUnreachableError(needed, terms.deadline - now)


def own_deadline(deadline: float, waiting: float) -> float:
    """Deadline for a pipeline's own scheduler, which does not know of the others' ``waiting`` seconds.

    Equal turns make ``own`` seconds last ``own + min(own, waiting)``.
    """
    now = monotonic()
    left = deadline - now
    return now + max(left - waiting, left / 2)


def seconds_of(pipelines: Iterable[Pipeline]) -> float:
    """Estimate of the seconds until what pipelines have to do is done."""
    seconds = 0.0
    for pipeline in pipelines:
        loop = pipeline.step_loop
        with loop.turn():
            seconds += loop.scheduler.wait_estimate(monotonic())
    return seconds
