"""Random interleavings of runs, calls, closings and dropped iterators: every picture is its own, or is refused."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.faults.interleave import ACTIONS, REQUESTS, STEPS, Action, Alone, Scene, play, stream
from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeSession
from sd2rt.runtime import Pipeline


@pytest.fixture(scope="module")
def scene(small_bundle: Path) -> Iterator[Scene]:
    with Pipeline.open(small_bundle, threads=1) as pipe:
        yield Scene(pipe, Alone.of(pipe))


actions = st.builds(
    Action,
    st.sampled_from(sorted(ACTIONS)),
    st.integers(0, len(REQUESTS) - 1),
    st.integers(0, STEPS - 1),
    st.integers(0, 3),
)


@given(st.lists(st.lists(actions, min_size=1, max_size=2), min_size=2, max_size=3))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_interleaving(scene: Scene, script: list[list[Action]]) -> None:
    assert play(scene, script) == ("held", "")


@pytest.mark.parametrize("name", sorted(ACTIONS))
def test_each_action_beside_calls(scene: Scene, name: str) -> None:
    calls = [Action("call", seed, 0, 0) for seed in (0, 1, 0)]
    assert play(scene, [[Action(name, 0, 1, 1)] * 2, calls, [Action(name, 1, 0, 0)] * 2]) == ("held", "")


def test_a_step_that_fails_leaves_no_result(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latents are incomplete, so a caller that goes on gets an error, not a picture."""
    pipe = scene.pipe
    run = stream(pipe, 0)
    steps = iter(run)
    next(steps)
    session, launch = OnnxRuntimeSession, OnnxRuntimeSession.launch

    def failing(self: object) -> None:
        raise EngineError("the device failed")

    monkeypatch.setattr(session, "launch", failing)
    with pytest.raises(EngineError, match="the device failed"):
        next(steps)
    monkeypatch.setattr(session, "launch", launch)
    for take in (run.result, run.stop, run.outcomes):
        with pytest.raises(RequestError, match="closed"):
            take()
    assert play(scene, [[Action("call", 0, 0, 0)]]) == ("held", "")


def test_a_kept_progress_does_not_hold_the_pipeline(scene: Scene) -> None:
    kept = list(stream(scene.pipe, 1))
    other = scene.pipe(seed=0, output_type="np", **REQUESTS[0]).images[0]
    np.testing.assert_allclose(other, scene.alone.decoded[0][-1], atol=1e-3)
    for progress in kept:
        with pytest.raises(RequestError, match="closed"):
            progress.latents()
        with pytest.raises(RequestError, match="closed"):
            progress.replace(np.zeros((1, 4, 8, 8), np.float32))


def test_a_run_in_a_cycle_does_not_block_other_threads(scene: Scene) -> None:
    gc.disable()
    try:
        cycle: list[object] = [stream(scene.pipe, 0)]
        cycle.append(cycle)
        del cycle
        assert play(scene, [[Action("call", 1, 0, 0)]], limit=60) == ("held", "")
    finally:
        gc.enable()


def test_a_run_of_a_thread_that_has_finished(scene: Scene) -> None:
    """Another thread, which the system may give the same number, has no part in it."""
    left: list[object] = []
    maker = threading.Thread(target=lambda: left.append(stream(scene.pipe, 0)))
    maker.start()
    maker.join()
    made: list[NDArray[Any]] = []

    def call() -> None:
        made.append(scene.pipe(seed=1, output_type="np", **REQUESTS[1]).images[0])

    caller = threading.Thread(target=call)
    caller.start()
    caller.join(0.2)
    left.clear()
    caller.join(60)
    np.testing.assert_allclose(made[0], scene.alone.decoded[1][-1], atol=1e-3)
