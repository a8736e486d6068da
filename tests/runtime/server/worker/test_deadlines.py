"""Deadlines by the scheduler's estimate, also where pipelines share a device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.runtime import Pipeline
from sd2rt.runtime.request.call import split_call
from sd2rt.runtime.scheduling.admission import DeadlineUnreachableError
from sd2rt.runtime.scheduling.work import Terms
from sd2rt.runtime.server.generation import GenerationRequest
from sd2rt.runtime.server.worker.deadlines import own_deadline, require_reachable, seconds_of
from sd2rt.runtime.server.worker.planning import PlannedGeneration, plan_generation


@pytest.fixture(scope="module")
def pipes(small_bundle: Path) -> Iterator[tuple[Pipeline, Pipeline]]:
    with Pipeline.open(small_bundle, threads=1) as first, Pipeline.open(small_bundle, threads=1) as second:
        for pipe in (first, second):
            pipe("a", num_inference_steps=5)
        yield first, second


def planned(manifest: Manifest, steps: int) -> PlannedGeneration:
    fields = {"prompt": "x", "num_inference_steps": steps, "sampler": "ddim"}
    request = GenerationRequest(request_id="a", model="small", fields=fields)
    return plan_generation(request, manifest, max_steps=1000, max_image_pixels=None)


def seconds_needed(pipe: Pipeline, others: list[Pipeline], steps: int) -> float:
    """The estimate, from the refusal of a deadline that has passed."""
    with pytest.raises(DeadlineUnreachableError) as refused:
        require_reachable(pipe, others, planned(pipe.manifest, steps), Terms(deadline=time.monotonic()))
    return refused.value.wait_seconds


def test_the_estimate_grows_with_steps_and_with_what_waits(pipes: tuple[Pipeline, Pipeline]) -> None:
    first, second = pipes
    few, many = seconds_needed(first, [second], 10), seconds_needed(first, [second], 900)
    assert 50 * few < many
    waiting = second.plan(split_call("a", {"num_inference_steps": 900, "sampler": "ddim"}))
    with second.stream_planned(waiting) as run:
        run.start(lambda state: None, user=None)
        assert seconds_of([second]) > 50 * few
        # Both take turns, so it takes twice as long.
        assert seconds_needed(first, [second], 10) == pytest.approx(2 * few, rel=0.05)
        assert seconds_needed(second, [first], 10) > many / 2
    require_reachable(first, [second], planned(first.manifest, 10), Terms(deadline=time.monotonic() + 3600))
    require_reachable(first, [second], planned(first.manifest, 900), Terms())


@pytest.mark.parametrize("own", [1.0, 4.9, 5.1, 8.9, 9.1, 12.0])
@pytest.mark.parametrize("waiting", [0.0, 1.0, 6.0, 100.0])
def test_the_own_deadline_is_met_if_the_request_can_be(own: float, waiting: float) -> None:
    left = own_deadline(time.monotonic() + 10, waiting) - time.monotonic()
    assert (own <= left) == (own + min(own, waiting) <= 10)
