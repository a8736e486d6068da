"""Runs of many threads and tasks on one pipeline: each picture is its own, and places are given up at once."""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sd2rt.engines.errors import EngineError, OutOfMemoryError, RequestError
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeSession
from sd2rt.runtime import AsyncPipeline, Pipeline
from sd2rt.runtime.denoising.stepper import Stepper
from sd2rt.runtime.networks.turns import Turns
from sd2rt.runtime.pipeline.step_loop import StepLoop
from sd2rt.runtime.request.call import split_call
from sd2rt.runtime.scheduling.admission import DeadlineUnreachableError
from sd2rt.runtime.scheduling.scheduler import Scheduler
from sd2rt.runtime.scheduling.settings import Settings
from sd2rt.runtime.scheduling.work import Priority, Terms

SAMPLERS = ("ddim", "euler-a", "dpmpp-2m", "unipc")
REQUESTS: list[dict[str, Any]] = [
    {
        "prompt": f"a lighthouse {index}",
        "seed": index,
        "sampler": SAMPLERS[index % 4],
        "num_inference_steps": 2 + index % 4,
        "guidance_scale": (1.0, 4.0, 7.5)[index % 3],
        "width": 64 * (1 + index % 2),
        "num_images_per_prompt": 1 + index % 5 // 4,
        "output_type": "np",
    }
    for index in range(20)
]
"""Requests of different prompts, samplers, steps, guidance, sizes and numbers of images."""


@pytest.fixture(scope="module")
def pipe(small_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(small_bundle, threads=1) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def alone(pipe: Pipeline) -> list[NDArray[np.float32]]:
    return [pipe(**request).images for request in REQUESTS]


def nothing_is_left(pipe: Pipeline) -> None:
    loop = pipe.step_loop
    with loop.turn():
        loop._remove_ended()
    assert loop.scheduler.images == 0
    assert not loop._members
    assert not loop._decodes
    assert not loop.stepper._states
    assert not pipe._gate._runs


def in_threads(count: int, call: Any) -> None:
    errors: list[BaseException] = []

    def act(index: int) -> None:
        try:
            call(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=act, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert not errors


def test_twenty_threads(pipe: Pipeline, alone: list[NDArray[np.float32]]) -> None:
    made: dict[int, NDArray[np.float32]] = {}
    in_threads(20, lambda index: made.update({index: pipe(**REQUESTS[index]).images}))
    for index, expected in enumerate(alone):
        np.testing.assert_array_equal(made[index], expected)
    nothing_is_left(pipe)


def test_twenty_tasks(small_bundle: Path, alone: list[NDArray[np.float32]]) -> None:
    async def all_of_them() -> list[Any]:
        async with AsyncPipeline.open(small_bundle, threads=1) as pipe:
            return await asyncio.gather(*(pipe(**request) for request in REQUESTS))

    for output, expected in zip(asyncio.run(all_of_them()), alone, strict=True):
        np.testing.assert_array_equal(output.images, expected)


def test_progress_and_previews_of_a_task(small_bundle: Path, alone: list[NDArray[np.float32]]) -> None:
    async def watched() -> tuple[list[Any], Any]:
        async with (
            AsyncPipeline.open(small_bundle, threads=1) as pipe,
            pipe.stream(previews=True, **REQUESTS[3]) as run,
        ):
            seen = [progress async for progress in run]
            return seen, await run.result()

    seen, (output,) = asyncio.run(watched())
    np.testing.assert_array_equal(output.images, alone[3])
    assert [progress.done for progress in seen] == sorted({progress.done for progress in seen})
    assert seen[-1].done == seen[-1].total == 5
    assert seen[-1].step == seen[-1].steps == 5
    (preview,) = seen[-1].previews()
    assert preview.size == (16, 8)


@pytest.mark.parametrize("seed", [0, 1])
def test_cancelled_tasks_give_up_their_places(
    small_bundle: Path, alone: list[NDArray[np.float32]], seed: int
) -> None:
    """Fifty tasks are cancelled at random moments, beside one that is not."""
    source = random.Random(seed)

    async def cancelled() -> None:
        async with AsyncPipeline.open(small_bundle, threads=1) as pipe:
            kept = asyncio.create_task(pipe(**REQUESTS[5]))
            for _ in range(50):
                task = asyncio.create_task(
                    pipe(**{**source.choice(REQUESTS), "num_inference_steps": source.randint(1, 40)})
                )
                await asyncio.sleep(source.random() * 0.02)
                # A short one may be finished.
                if task.cancel():
                    with pytest.raises(asyncio.CancelledError):
                        await task
            np.testing.assert_array_equal((await kept).images, alone[5])
            np.testing.assert_array_equal((await pipe(**REQUESTS[6])).images, alone[6])
            nothing_is_left(pipe.pipeline)

    asyncio.run(cancelled())


def test_a_closed_run_is_in_no_further_call(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call after the close is without it, and only the one under way may still have it."""
    calls: list[int] = []
    step = Stepper.step

    def counted(self: Stepper, members: Any) -> Any:
        calls.append(len(members))
        return step(self, members)

    monkeypatch.setattr(Stepper, "step", counted)
    run = pipe.stream("a lighthouse", num_inference_steps=30, seed=1, sampler="ddim")
    steps = iter(run)
    next(steps)
    run.close()
    assert next(steps, None) is None
    assert len(calls) == 1
    pipe("another", num_inference_steps=2, seed=1, sampler="ddim")
    assert len(calls) == 3
    nothing_is_left(pipe)


def test_an_idle_run_holds_back_nobody(pipe: Pipeline, alone: list[NDArray[np.float32]]) -> None:
    idle = pipe.stream(**REQUESTS[2])
    next(iter(idle))
    in_threads(3, lambda index: np.testing.assert_array_equal(pipe(**REQUESTS[index]).images, alone[index]))
    np.testing.assert_array_equal(idle.result()[0].images, alone[2])


def test_a_callback_may_call(pipe: Pipeline, alone: list[NDArray[np.float32]]) -> None:
    """In its own thread, or in one that it waits for."""

    def nested(pipeline: Any, step: int, timestep: float, state: dict[str, Any]) -> None:
        if step == 0:
            np.testing.assert_array_equal(pipe(**REQUESTS[1]).images, alone[1])
            in_threads(1, lambda _: np.testing.assert_array_equal(pipe(**REQUESTS[0]).images, alone[0]))

    images = pipe(**REQUESTS[3], callback_on_step_end=nested).images
    np.testing.assert_array_equal(images, alone[3])


def test_changes_wait_for_runs_in_flight_and_new_runs_behind(small_bundle: Path) -> None:
    order: list[str] = []
    with Pipeline.open(small_bundle, threads=1) as pipe:
        run = pipe.stream("a lighthouse", num_inference_steps=3)

        def change() -> None:
            pipe.unload_lora()
            order.append("changed")

        changing = threading.Thread(target=change)
        changing.start()
        while not pipe._gate._changing:
            time.sleep(0.001)

        def call() -> None:
            pipe("another", num_inference_steps=1)
            order.append("called")

        calling = threading.Thread(target=call)
        # The run in flight is asked for steps meanwhile, so the new one has no reason to pass.
        calling.start()
        for _ in run:
            assert not order
        run.result()
        order.append("finished")
        changing.join(60)
        calling.join(60)
    assert order.index("changed") < order.index("called")


def test_a_change_in_the_middle_of_an_own_run_is_refused(pipe: Pipeline) -> None:
    with pipe.stream("a lighthouse", num_inference_steps=2) as run:
        next(iter(run))
        with pytest.raises(RequestError, match="in the middle of another run"):
            pipe.unload_lora()


def test_a_call_passes_a_change_that_waits_for_its_caller(small_bundle: Path) -> None:
    """A callback's call, also in another thread, while another thread waits to change the networks."""
    with Pipeline.open(small_bundle, threads=1) as pipe:
        changing = threading.Thread(target=pipe.unload_lora)

        def nested(pipeline: Any, step: int, timestep: float, state: dict[str, Any]) -> None:
            if step == 0:
                changing.start()
                while not pipe._gate._changing:
                    time.sleep(0.001)
                pipe("one", num_inference_steps=1)
                in_threads(1, lambda _: pipe("two", num_inference_steps=1))

        pipe("a lighthouse", num_inference_steps=2, callback_on_step_end=nested)
        changing.join(60)
        assert not changing.is_alive()


def test_out_of_memory_halves_the_batch(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images come out as they would alone, also those with fresh noise, which is not drawn twice."""
    options: dict[str, Any] = {"num_inference_steps": 3, "sampler": "euler-a", "output_type": "latent"}
    expected = [pipe("a lighthouse", seed=seed, **options).images[0] for seed in range(4)]
    launch = OnnxRuntimeSession.launch

    def limited(self: Any) -> None:
        if "state" in self.buffers and self.buffers["state"].shape[0] > 1:
            raise OutOfMemoryError("denoiser: out of memory")
        launch(self)

    with monkeypatch.context() as patched:
        patched.setattr(OnnxRuntimeSession, "launch", limited)
        images = pipe("a lighthouse", seed=0, num_images_per_prompt=4, **options).images
    np.testing.assert_array_equal(images, expected)

    def none_at_all(self: Any) -> None:
        raise OutOfMemoryError("denoiser: out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(OnnxRuntimeSession, "launch", none_at_all)
        with pytest.raises(EngineError, match="out of memory"):
            pipe("a lighthouse", seed=0, prompt_embeds=None, **options)
    nothing_is_left(pipe)


def test_a_failing_callback_ends_its_own_run_alone(pipe: Pipeline, alone: list[NDArray[np.float32]]) -> None:
    def failing(pipeline: Any, step: int, timestep: float, state: dict[str, Any]) -> None:
        raise ValueError("of the caller")

    def call(index: int) -> None:
        if index == 1:
            with pytest.raises(ValueError, match="of the caller"):
                pipe(**REQUESTS[1], callback_on_step_end=failing)
        else:
            np.testing.assert_array_equal(pipe(**REQUESTS[index]).images, alone[index])

    in_threads(3, call)
    nothing_is_left(pipe)


def test_latents_of_a_callback_apply_before_the_next_step(pipe: Pipeline) -> None:
    """Also while other runs take turns at the same buffers."""
    options: dict[str, Any] = {
        "num_inference_steps": 4,
        "seed": 2,
        "sampler": "dpmpp-2m",
        "output_type": "np",
    }

    def halve(pipeline: Any, step: int, timestep: float, state: dict[str, Any]) -> dict[str, Any]:
        return {"latents": state["latents"] / 2}

    expected = pipe("a lighthouse", callback_on_step_end=halve, **options).images
    made: dict[int, Any] = {}
    in_threads(
        4,
        lambda index: made.update(
            {index: pipe("a lighthouse", callback_on_step_end=halve, **options).images}
        ),
    )
    for images in made.values():
        np.testing.assert_array_equal(images, expected)


def test_closing_waits_for_other_threads(small_bundle: Path) -> None:
    pipe = Pipeline.open(small_bundle, threads=1)
    started = threading.Event()
    made: list[Any] = []

    def watch(pipeline: Any, step: int, timestep: float, state: dict[str, Any]) -> None:
        started.set()

    thread = threading.Thread(
        target=lambda: made.append(pipe("a lighthouse", num_inference_steps=6, callback_on_step_end=watch))
    )
    thread.start()
    started.wait(60)
    pipe.close()
    thread.join(60)
    assert len(made) == 1
    with pytest.raises(RequestError, match="closed"):
        pipe("a lighthouse")


def test_an_urgent_run_overtakes(pipe: Pipeline) -> None:
    ended: list[str] = []

    async def one(name: str, pipeline: AsyncPipeline, terms: Terms) -> None:
        planned = pipeline.pipeline.plan(split_call(name, {"num_inference_steps": 40, "seed": 1}))
        async with pipeline.stream_planned(planned, request_id=name, terms=terms) as run:
            await run.result()
        ended.append(name)

    async def main() -> None:
        async with AsyncPipeline(Pipeline.open(pipe.bundle.path, threads=1)) as pipeline:
            slow = [
                asyncio.create_task(one(f"batch {index}", pipeline, Terms(priority=Priority.BATCH)))
                for index in range(4)
            ]
            await asyncio.sleep(0.05)
            await one("urgent", pipeline, Terms(priority=Priority.INTERACTIVE))
            await asyncio.gather(*slow)
            nothing_is_left(pipeline.pipeline)

    asyncio.run(main())
    assert ended.index("urgent") < 3
    assert len(ended) == 5


def test_a_deadline_out_of_reach_is_refused(pipe: Pipeline) -> None:
    # The first run measures a step.
    pipe("a", num_inference_steps=3)
    planned = pipe.plan(split_call("a", {"num_inference_steps": 900}))
    with pytest.raises(DeadlineUnreachableError, match="after its deadline"):
        pipe.stream_planned(planned, terms=Terms(deadline=time.monotonic() + 0.001))
    nothing_is_left(pipe)
    with pipe.stream_planned(planned, terms=Terms(deadline=time.monotonic() + 3600)) as run:
        next(iter(run))
        assert run.first_call is not None
    nothing_is_left(pipe)


def test_pipelines_that_share_turns_make_one_call_at_a_time(
    pipe: Pipeline, alone: list[NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calling, most = 0, 0
    launch = OnnxRuntimeSession.launch

    def counted(self: OnnxRuntimeSession) -> None:
        nonlocal calling, most
        calling += 1
        most = max(most, calling)
        launch(self)
        calling -= 1

    turns = Turns()
    with (
        Pipeline.open(pipe.bundle.path, threads=1, turns=turns) as first,
        Pipeline.open(pipe.bundle.path, threads=1, turns=turns) as second,
    ):
        monkeypatch.setattr(OnnxRuntimeSession, "launch", counted)
        made: dict[int, NDArray[np.float32]] = {}

        def one(index: int) -> None:
            made[index] = (first, second)[index % 2](**REQUESTS[index]).images

        in_threads(8, one)
    assert most == 1
    assert all(np.array_equal(made[index], alone[index]) for index in range(8))


def test_a_lone_run_does_not_ask_the_scheduler(
    pipe: Pipeline, alone: list[NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It repeats its call until something changes; then everybody is served, with unchanged pictures."""
    asked: list[int] = []
    real = Scheduler.next_call

    def next_call(self: Scheduler, now: float) -> Any:
        asked.append(1)
        return real(self, now)

    monkeypatch.setattr(Scheduler, "next_call", next_call)
    with pipe.stream("a lighthouse 3", num_inference_steps=12, seed=3, output_type="np") as run:
        steps = iter(run)
        for _ in range(6):
            next(steps)
        assert len(asked) == 1
        np.testing.assert_array_equal(pipe(**REQUESTS[0]).images, alone[0])
        together = len(asked)
        [changed] = run.result()
        assert len(asked) > together
    np.testing.assert_array_equal(
        changed.images,
        pipe("a lighthouse 3", num_inference_steps=12, seed=3, output_type="np").images,
    )
    nothing_is_left(pipe)
    asked.clear()
    with pipe.stream("a", num_inference_steps=12) as left:
        next(iter(left))
    nothing_is_left(pipe)


def iterated(pipe: Pipeline, count: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Images in each call, in the order of calls, of threads that iterate over the steps of their runs."""
    sizes: list[int] = []
    step = Stepper.step

    def counted(self: Stepper, members: Any) -> Any:
        sizes.append(len(members))
        return step(self, members)

    def iterate(index: int) -> None:
        with pipe.stream("a lighthouse", seed=index, num_inference_steps=12, sampler="ddim") as run:
            for _ in run:
                pass

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "step", counted)
        in_threads(count, iterate)
    return "".join(map(str, sizes))


def test_threads_that_iterate_share_calls(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a thread takes to ask again: it is waited for. A run that has no step left is not."""
    monkeypatch.setattr(
        "sd2rt.runtime.pipeline.step_loop.patience",
        lambda now, own, images, others, cost, limit: 60.0 if len(others) and limit > 1 else 0.0,
    )
    shared = Settings(max_batch=4, group_batch=4)
    with monkeypatch.context() as patched:
        patched.setattr(pipe, "_loop", StepLoop(pipe._networks, shared))
        assert re.fullmatch("1*2+1*", iterated(pipe, 2, monkeypatch))
        # The control: on a CPU, runs take turns.
    assert iterated(pipe, 2, monkeypatch) == "1" * 24
    nothing_is_left(pipe)


def test_a_lone_caller_waits_for_nobody(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: Any) -> float:
        raise AssertionError("there is nobody to wait for")

    monkeypatch.setattr("sd2rt.runtime.pipeline.step_loop.patience", asked)
    shared = Settings(max_batch=4, group_batch=4)
    with monkeypatch.context() as patched:
        patched.setattr(pipe, "_loop", StepLoop(pipe._networks, shared))
        assert iterated(pipe, 1, monkeypatch) == "1" * 12
