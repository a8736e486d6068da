"""The step loop over one small denoiser: rows that come and go, and independence of the samples in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sd2rt.runtime import Pipeline, Request
from sd2rt.runtime.denoising.batch_rows import BatchRows
from sd2rt.runtime.denoising.buckets import Buckets
from sd2rt.runtime.denoising.guidance import plan_guidance
from sd2rt.runtime.denoising.stepper import run_steps
from sd2rt.runtime.denoising.trajectory import Trajectory, batchable
from sd2rt.runtime.prompts.text_conditioning import TextConditioning
from sd2rt.runtime.request.request import make_request
from sd2rt.runtime.rng.torch_cpu import Generator
from sd2rt.runtime.samplers import SamplingOptions, make_plan, sampler_config
from sd2rt.runtime.samplers.plan import Plan

CLOSE = 1e-5
"""Tolerance relative to the largest value: kernels sum in another order when a call has more rows."""


@pytest.fixture(scope="module")
def pipe(small_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(small_bundle, threads=1) as pipeline:
        yield pipeline


def text(value: int, tokens: int = 77) -> NDArray[np.float32]:
    return np.random.default_rng(value).standard_normal((tokens, 32)).astype(np.float32)


FOX, SNOW, NIGHT, NOTHING = (text(value) for value in range(4))
PLAIN = TextConditioning((FOX,), NOTHING)


def plan_of(pipe: Pipeline, sampler: Any, steps: int, eta: float = 0.0) -> Plan:
    config = sampler_config(sampler, pipe.manifest.sampler)
    return make_plan(pipe.manifest.noise, config, SamplingOptions(steps, eta=eta))


def trajectory(
    plan: Plan,
    texts: tuple[TextConditioning, ...],
    seed: int,
    *,
    scale: float | tuple[float, ...] = 6.0,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
) -> Trajectory:
    """Make a trajectory; ``texts`` are repeated over the calls."""
    each = (texts * len(plan.steps))[: len(plan.steps)]
    guidance = plan_guidance(scale, rescale, interval, plan.levels)
    generator = Generator(seed)
    return Trajectory(
        plan, generator.randn((4, 8, 8)), guidance.apply(each), guidance.values, generator, seed
    )


def finished(pipe: Pipeline, trajectories: list[Trajectory], max_batch: int = 4) -> list[NDArray[np.float32]]:
    for group in batchable(trajectories):
        for _ in run_steps(pipe.engine("denoiser"), group, max_batch):
            pass
    assert all(t.done == t.length for t in trajectories)
    return [t.latents for t in trajectories]


def by_hand(pipe: Pipeline, trajectory: Trajectory) -> NDArray[np.float32]:
    """Run each step as a separate call with the rows it needs, carrying the state over on the host."""
    state = np.zeros((1, 5, *trajectory.latents.shape), np.float32)
    state[0, 0] = trajectory.latents
    for index in range(trajectory.length):
        rows = BatchRows.from_samples([trajectory.texts[index]])
        session = pipe.engine("denoiser").session({"B": 1, **rows.dims, "h": 8, "w": 8})
        rows.write(session.buffers, None)
        noise = np.zeros_like(trajectory.latents)
        if trajectory.draws_noise[index]:
            noise = trajectory.generator.randn(trajectory.latents.shape)
        values = {
            "state": state,
            "noise": noise[None],
            "timestep": trajectory.timesteps[index : index + 1],
            "weights": trajectory.weights[index : index + 1],
            "update": trajectory.updates[index : index + 1],
            "guidance": trajectory.guidance[index : index + 1],
        }
        for name, value in values.items():
            session.buffers[name].write(value)
        session.launch()
        state = session.buffers["state_out"].read()
    latents: NDArray[np.float32] = state[0, 0]
    return latents


def assert_close(actual: Any, expected: Any, label: str = "") -> None:
    assert np.abs(np.subtract(actual, expected)).max() <= CLOSE * np.abs(expected).max(), label


CASES: dict[str, Callable[[Pipeline], Trajectory]] = {
    "plain": lambda pipe: trajectory(plan_of(pipe, "ddim", 5), (PLAIN,), 1),
    "interval": lambda pipe: trajectory(
        plan_of(pipe, "dpmpp-2m", 7), (PLAIN,), 2, interval=(0.4, 4), rescale=0.5
    ),
    "interval, fresh noise": lambda pipe: trajectory(
        plan_of(pipe, "ddim", 7, eta=1.0), (PLAIN,), 3, interval=(0.4, 4)
    ),
    "ramp": lambda pipe: trajectory(plan_of(pipe, "pndm", 5), (PLAIN,), 4, scale=(9, 2)),
    "composition": lambda pipe: trajectory(
        plan_of(pipe, "euler", 6), (TextConditioning((FOX, SNOW, NIGHT), NOTHING, (0.7, 0.6, -0.4)),), 5
    ),
    "alternating": lambda pipe: trajectory(
        plan_of(pipe, "dpmpp-2m", 6), (PLAIN, TextConditioning((SNOW,), NOTHING)), 6, scale=(3, 7)
    ),
    "composed in turn": lambda pipe: trajectory(
        plan_of(pipe, "ddim", 6), (PLAIN, TextConditioning((SNOW, NIGHT), FOX, (0.3, 0.7))), 7, rescale=0.7
    ),
    "unguided": lambda pipe: trajectory(
        plan_of(pipe, "euler", 4), (TextConditioning((NIGHT,)),), 8, scale=1.0
    ),
    "long": lambda pipe: trajectory(
        plan_of(pipe, "ddim", 3), (TextConditioning((text(9, 154),), text(10, 154)),), 9
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loop_makes_the_steps_one_by_one(pipe: Pipeline, name: str) -> None:
    """Bit for bit: each session continues from the state that the previous call left."""
    expected = by_hand(pipe, CASES[name](pipe))
    (actual,) = finished(pipe, [CASES[name](pipe)])
    np.testing.assert_array_equal(actual, expected)
    assert actual.std() > 0.05


@pytest.mark.parametrize("max_batch", [1, 2, 3, 16])
def test_a_mixed_batch_is_each_alone(pipe: Pipeline, max_batch: int) -> None:
    """Rows of every kind join and leave, in batches of any size."""
    together = finished(pipe, [make(pipe) for make in CASES.values()], max_batch)
    for name, actual in zip(CASES, together, strict=True):
        (alone,) = finished(pipe, [CASES[name](pipe)])
        assert_close(actual, alone, name)


def test_calls_outside_of_the_interval_run_one_row(pipe: Pipeline, launched_rows: list[int]) -> None:
    plan = plan_of(pipe, "ddim", 10)
    interval = (0.4, 4.0)
    finished(pipe, [trajectory(plan, (PLAIN,), 1, interval=interval)])
    assert launched_rows == [2 if 0.4 < level <= 4 else 1 for level in plan.levels]
    assert {*launched_rows} == {1, 2}
    launched_rows.clear()
    finished(pipe, [trajectory(plan, (PLAIN,), 1, scale=(4, 0))])
    assert launched_rows == [2] * 7 + [1] * 3


def test_a_prompt_of_no_share_is_as_if_it_were_not_there(pipe: Pipeline) -> None:
    plan = plan_of(pipe, "ddim", 5)
    for other in (FOX, SNOW):
        texts = TextConditioning((FOX, other), NOTHING, (1.0, 0.0))
        actual, expected = (
            finished(pipe, [trajectory(plan, (conditioning,), 1, rescale=0.5)])
            for conditioning in (texts, PLAIN)
        )
        assert_close(actual, expected)


def test_shares_of_one_prompt_add_up(pipe: Pipeline) -> None:
    plan = plan_of(pipe, "ddim", 5)
    halves = TextConditioning((FOX, FOX), NOTHING, (0.25, 0.75))
    actual, expected = (finished(pipe, [trajectory(plan, (texts,), 1)]) for texts in (halves, PLAIN))
    assert_close(actual, expected)


def test_the_whole_interval_is_plain_guidance(pipe: Pipeline) -> None:
    plan = plan_of(pipe, "ddim", 5)
    actual, expected = (
        finished(pipe, [trajectory(plan, (PLAIN,), 1, interval=interval)]) for interval in ((0, np.inf), None)
    )
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_stays_in_its_sample(pipe: Pipeline, bad: float) -> None:
    """Also with a sample that has more prompts: the others are padded with rows of their own."""
    plan = plan_of(pipe, "ddim", 5)
    texts = (
        TextConditioning((FOX, SNOW, NIGHT), NOTHING, (0.5, 0.5, 0.5)),
        PLAIN,
        TextConditioning((NIGHT,)),
    )
    spoilt, *others = (trajectory(plan, (text,), seed) for seed, text in enumerate(texts))
    for batch in run_steps(pipe.engine("denoiser"), [spoilt, *others], 4):
        if spoilt.done == 2 and spoilt.error is None:
            latents = batch.latents()
            latents[0] = bad
            batch.replace(latents)
    assert "step 3 of 5" in str(spoilt.error)
    for seed, actual in enumerate(others, 1):
        (alone,) = finished(pipe, [trajectory(plan, (texts[seed],), seed)])
        assert_close(actual.latents, alone)


def test_texts_of_two_lengths_share_a_batch(pipe: Pipeline, launched_rows: list[int]) -> None:
    """The shorter one is repeated, which changes no more than batching does."""
    common: dict[str, Any] = {"num_inference_steps": 3, "sampler": "ddim", "output_type": "latent"}
    requests = [
        Request(prompt="a fox", seed=1, **common),
        Request(prompt_embeds=text(5, 154), negative_prompt_embeds=text(6, 154), seed=2, **common),
        Request(prompt_embeds=text(5, 77), guidance_scale=1, seed=3, **common),
    ]
    alone = [pipe.generate([request])[0].images for request in requests]
    launched_rows.clear()
    together = pipe.generate(requests)
    assert launched_rows == [5, 5, 5]
    for actual, expected in zip(together, alone, strict=True):
        assert_close(actual.images, expected)


def test_requests_of_different_guidance_share_a_batch(pipe: Pipeline, launched_rows: list[int]) -> None:
    """An interval, a ramp, plain guidance and none give the same images together as alone."""
    common: dict[str, Any] = {"num_inference_steps": 6, "sampler": "euler", "output_type": "np"}
    requests = [
        Request(prompt="a fox", seed=1, guidance_interval=(0.4, 4), **common),
        Request(prompt="a fox", seed=2, guidance_scale=(9, 0), guidance_rescale=0.3, **common),
        Request(prompt="a fox", seed=3, **common),
        make_request(prompt="a fox", seed=4, preset="turbo", output_type="np"),
    ]
    alone = [pipe.generate([request])[0].images for request in requests]
    launched_rows.clear()
    together = pipe.generate(requests)
    assert len(launched_rows) == 6
    assert 3 < min(launched_rows) + 1 <= max(launched_rows) <= 7
    for actual, expected in zip(together, alone, strict=True):
        assert_close(actual.images, expected)
    assert not np.array_equal(alone[0], alone[2])


def test_an_edited_text_keeps_its_session(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """If only the words change, the state stays in its buffer."""
    written: list[slice | None] = []
    engine = pipe.engine("denoiser")
    dims = {"B": 1, "R": 2, "P": 1, "L": 77, "h": 8, "w": 8}
    buffer = engine.session(dims, {"state_out": "state"}, "finite").buffers["state"]
    push = type(buffer).push

    def counted(self: Any, rows: slice | None = None) -> None:
        if self is buffer:
            written.append(rows)
        push(self, rows)

    monkeypatch.setattr(type(buffer), "push", counted)
    finished(pipe, [trajectory(plan_of(pipe, "ddim", 6), (PLAIN, TextConditioning((SNOW,), NOTHING)), 1)])
    assert written == [slice(0, 1)]


class Wide(Buckets):
    """Twice as many samples as needed, rows and prompts to spare, and texts repeated twice."""

    def padded(self, dims: Any) -> dict[str, int]:
        wide = {"B": 2 * dims["B"], "R": 2 * dims["R"] + 1, "P": dims["P"] + 1, "L": 2 * dims["L"]}
        return {**dims, **wide}


ANY: Callable[[Any], bool] = lambda dims: True  # noqa: E731


@pytest.mark.parametrize("buckets", [Buckets(8, ANY), Wide(8, ANY)], ids=["powers", "wide"])
@pytest.mark.parametrize("max_batch", [1, 3, 7])
def test_padding_changes_rounding_alone(pipe: Pipeline, buckets: Buckets, max_batch: int) -> None:
    """Images that join and leave, in calls of all kinds of rows."""
    alike = [make(pipe) for name, make in CASES.items() if name != "long"]
    exact = [make(pipe) for name, make in CASES.items() if name != "long"]
    for _ in run_steps(pipe.engine("denoiser"), alike, max_batch, buckets):
        pass
    for actual, expected, name in zip(alike, finished(pipe, exact, max_batch), CASES, strict=False):
        assert actual.error is None
        assert actual.done == actual.length
        assert_close(actual.latents, expected, name)


def test_padded_calls_have_few_sizes(pipe: Pipeline, launched_rows: list[int]) -> None:
    trajectories = [make(pipe) for name, make in CASES.items() if name != "long"]
    for _ in run_steps(pipe.engine("denoiser"), trajectories, 4, Buckets(4, ANY)):
        pass
    assert {*launched_rows} <= {1, 2, 4, 8, 16, 3, 6, 12}
    launched_rows.clear()
    trajectories = [make(pipe) for name, make in CASES.items() if name != "long"]
    finished(pipe, trajectories, 4)
    assert {5, 7} & {*launched_rows}


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_padding_is_neither_spoilt_nor_checked(pipe: Pipeline, bad: float) -> None:
    """A sample that is not finite leaves, and its place becomes padding; then another joins there."""
    plan = plan_of(pipe, "ddim", 6)
    spoilt, other = trajectory(plan, (PLAIN,), 0), trajectory(plan, (PLAIN,), 1)
    last = trajectory(plan_of(pipe, "ddim", 4, eta=1.0), (PLAIN,), 2)
    buckets = Wide(4, ANY)
    for batch in run_steps(pipe.engine("denoiser"), [spoilt, other, last], 2, buckets):
        if spoilt.done == 2 and spoilt.error is None:
            latents = batch.latents()
            latents[0] = bad
            batch.replace(latents)
    assert "step 3 of 6" in str(spoilt.error)
    for actual, expected in (
        (other, trajectory(plan, (PLAIN,), 1)),
        (last, trajectory(plan_of(pipe, "ddim", 4, eta=1.0), (PLAIN,), 2)),
    ):
        assert actual.error is None
        (latents,) = finished(pipe, [expected])
        assert_close(actual.latents, latents)


def test_padding_draws_no_noise(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state stays zero, whatever was there before."""
    plan = plan_of(pipe, "ddim", 3, eta=1.0)
    sizes = {"B": 4, "R": 9, "P": 2, "L": 154, "h": 8, "w": 8}
    session = pipe.engine("denoiser").session(sizes, {"state_out": "state"}, "finite")
    for buffer in ("state", "noise", "weights", "update"):
        session.buffers[buffer].write(np.ones(session.buffers[buffer].shape, np.float32))
    samples = [trajectory(plan, (PLAIN,), seed) for seed in range(2)]
    for _ in run_steps(pipe.engine("denoiser"), samples, 2, Wide(4, ANY)):
        state = session.buffers["state"].read()
        assert np.abs(state[:2]).max() > 0
        np.testing.assert_array_equal(state[2:], 0)
        np.testing.assert_array_equal(session.buffers["noise"].read()[2:], 0)
