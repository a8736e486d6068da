"""Whole images on a simulated GPU: bit-equal to the CPU's, and no step waits for the previous one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sd2rt.engines.errors import EngineError
from sd2rt.runtime import Pipeline, Request
from sd2rt.runtime.denoising.guidance import plan_guidance
from sd2rt.runtime.denoising.stepper import run_steps
from sd2rt.runtime.denoising.trajectory import Trajectory
from sd2rt.runtime.prompts.text_conditioning import TextConditioning
from sd2rt.runtime.rng.torch_cpu import Generator
from sd2rt.runtime.samplers import SamplingOptions, make_plan, sampler_config

from ...engines.simulated_gpu import Pace
from .conftest import Open


@pytest.fixture(scope="module")
def cpu(small_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(small_bundle, threads=1) as pipeline:
        yield pipeline


COMMON: dict[str, Any] = {"output_type": "np"}
REQUESTS = [
    Request(prompt="a fox", seed=1, num_inference_steps=6, sampler="pndm", **COMMON),
    Request(prompt="snow", seed=2, num_inference_steps=9, sampler="ddim", eta=1.0, **COMMON),
    Request(
        prompt="night",
        seed=3,
        num_inference_steps=7,
        sampler="dpmpp-2m",
        guidance_interval=(0.4, 4),
        **COMMON,
    ),
    Request(prompt="a lake", seed=4, num_inference_steps=4, sampler="euler-a", guidance_scale=1, **COMMON),
    Request(
        prompt="[fox|owl]", seed=5, num_inference_steps=5, prompt_syntax="a1111", sampler="heun", **COMMON
    ),
    Request(prompt="a hill", seed=6, num_inference_steps=3, guidance_scale=(9, 2), sampler="ddim", **COMMON),
    Request(
        prompt="a boat",
        seed=7,
        image=np.random.default_rng(7).random((64, 64, 3)),
        mask_image=np.tri(64, dtype=np.bool_),
        num_inference_steps=6,
        sampler="euler-a",
        **COMMON,
    ),
]
"""Images join and leave at different steps; some draw noise at each step, some change their text on the way."""


def images(pipeline: Pipeline, requests: list[Request]) -> list[NDArray[Any]]:
    return [np.asarray(output.images) for output in pipeline.generate(requests)]


@pytest.fixture(scope="module")
def expected(cpu: Pipeline) -> list[NDArray[Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "max_batch", 3)
        return images(cpu, REQUESTS)


@pytest.mark.parametrize("pace", ["lazy", "random"])
def test_mixed_batches_are_the_cpus(expected: list[NDArray[Any]], on_gpu: Open, pace: Pace) -> None:
    """Text encoder, steps and decoder are bit-equal, whenever the device does its work."""
    gpu, pipeline = on_gpu(pace, max_batch=3)
    actual = images(pipeline, REQUESTS)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len({image.tobytes() for image in actual}) == len(REQUESTS)
    part: Any = pipeline.engine("denoiser")
    (denoiser,) = part._engines.values()
    launched = [session for session in denoiser._sessions._sessions.values() if session._graph is not None]
    assert gpu.counts["graph launch"] > len(launched) > 1


def test_each_bucket_is_captured_once(on_gpu: Open) -> None:
    gpu, pipeline = on_gpu()
    settings = COMMON | {"output_type": "latent"}
    request = Request(prompt="a fox", seed=1, num_inference_steps=9, sampler="ddim", **settings)
    pipeline.generate([request])
    first = gpu.counts["capture"]
    assert first >= 1
    pipeline.generate([request])
    # A graph is captured at the second launch of its shape, so at most one more follows.
    assert gpu.counts["capture"] - first <= 1
    settled = gpu.counts["capture"]
    for _ in range(3):
        pipeline.generate([request])
    assert gpu.counts["capture"] == settled


def test_autoencoder_in_tiles(on_gpu: Open, small_bundle: Path) -> None:
    """Encode an initial image larger than a tile: each pass uses the statistics of the one before."""
    options: dict[str, Any] = {
        "image": np.random.default_rng(0).random((320, 256, 3)).astype(np.float32),
        "strength": 0.5,
        "num_inference_steps": 2,
        "seed": 3,
        "output_type": "np",
        "width": 256,
        "height": 320,
    }
    # Open the CPU pipeline first: modules loaded after the simulation is installed are simulated.
    with Pipeline.open(small_bundle, threads=1, tile=32) as plain:
        expected = plain("a fox", **options).images
    np.testing.assert_array_equal(on_gpu(tile=32)[1]("a fox", **options).images, expected)


def text(value: int) -> NDArray[np.float32]:
    return np.random.default_rng(value).standard_normal((77, 32)).astype(np.float32)


PLAIN = TextConditioning((text(0),), text(1))


def trajectory(
    pipe: Pipeline, steps: int, seed: int, *, sampler: Any = "ddim", eta: float = 0.0, interval: Any = None
) -> Trajectory:
    config = sampler_config(sampler, pipe.manifest.sampler)
    plan = make_plan(pipe.manifest.noise, config, SamplingOptions(steps, eta=eta))
    guidance = plan_guidance(6.0, 0.0, interval, plan.levels)
    generator = Generator(seed)
    texts = guidance.apply((PLAIN,) * len(plan.steps))
    return Trajectory(plan, generator.randn((4, 8, 8)), texts, guidance.values, generator, seed)


@pytest.mark.parametrize("interval", [None, (0.4, 4.0)])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_trajectory_waits_for_nothing(on_gpu: Open, interval: Any, eta: float) -> None:
    """The host waits for a fast device only at the end, even if the batch is rebuilt on the way."""
    gpu, pipeline = on_gpu("eager")
    sample = trajectory(pipeline, 12, 1, interval=interval, eta=eta)
    waits = [gpu.waits for _ in run_steps(pipeline.engine("denoiser"), [sample], 4)]
    assert len(set(waits)) == 1
    # One wait, for its latents.
    assert gpu.waits == waits[0] + 1


def test_a_yield_means_enqueued(on_gpu: Open) -> None:
    gpu, pipeline = on_gpu("lazy")
    waits = gpu.waits
    steps = run_steps(pipeline.engine("denoiser"), [trajectory(pipeline, 12, 1)], 4)
    for _ in range(4):
        next(steps)
    assert gpu.counts["run"] == 0
    assert gpu.waits == waits
    # Now the host is as far ahead as allowed: each further step waits for an earlier one.
    batch = next(steps)
    assert 0 < gpu.counts["run"] <= 1
    batch.collect(everything=True)
    assert gpu.counts["run"] == 5


@pytest.mark.parametrize("interval", [None, (0.4, 4.0)])
@pytest.mark.parametrize("bad", [1, 3, 7, 8])
@pytest.mark.parametrize(
    ("pace", "seed"), [("lazy", 0), ("eager", 0), *(("random", seed) for seed in range(3))]
)
def test_an_error_that_arrives_late_names_its_step(
    cpu: Pipeline, on_gpu: Open, pace: Pace, seed: int, bad: int, interval: Any
) -> None:
    def spoilt(pipe: Pipeline) -> tuple[Trajectory, Trajectory]:
        failing, other = trajectory(pipe, 8, 1, interval=interval), trajectory(pipe, 10, 2)
        failing.updates = failing.updates.copy()
        failing.updates[bad - 1] = np.nan
        for _ in run_steps(pipe.engine("denoiser"), [failing, other], 4):
            pass
        return failing, other

    expected, alone = spoilt(cpu)
    actual, other = spoilt(on_gpu(pace, seed)[1])
    assert str(actual.error) == str(expected.error)
    assert f"step {bad} of 8 (timestep" in str(actual.error)
    if pace == "lazy" and bad < 4:
        assert actual.done > bad
    if pace == "eager":
        assert actual.done == bad
    assert other.error is None
    assert other.done == other.length
    # The failing one may have shared a few more batches, which changes rounding.
    assert np.abs(other.latents - alone.latents).max() <= 1e-5 * np.abs(alone.latents).max()


def test_checks_of_a_broken_loop_do_not_reach_the_next_one(on_gpu: Open, cpu: Pipeline) -> None:
    _, pipeline = on_gpu("lazy")
    spoilt = trajectory(pipeline, 8, 1)
    spoilt.updates = np.full_like(spoilt.updates, np.nan)
    steps = run_steps(pipeline.engine("denoiser"), [spoilt], 4)
    next(steps)
    next(steps)
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt())
    ends = []
    for pipe in (pipeline, cpu):
        whole = trajectory(pipe, 4, 2)
        for _ in run_steps(pipe.engine("denoiser"), [whole], 4):
            pass
        assert whole.error is None
        ends.append(whole.latents)
    np.testing.assert_array_equal(ends[0], ends[1])


def test_latents_of_a_loop_that_is_left_early(on_gpu: Open, cpu: Pipeline) -> None:
    ends = []
    for pipe in (on_gpu("lazy")[1], cpu):
        sample = trajectory(pipe, 8, 1, sampler="euler-a")
        steps = run_steps(pipe.engine("denoiser"), [sample], 4)
        for _ in range(3):
            batch = next(steps)
        batch.collect(everything=True)
        ends.append(sample.latents)
    np.testing.assert_array_equal(ends[0], ends[1])


def test_previews_and_callbacks(on_gpu: Open, cpu: Pipeline) -> None:
    """A callback reads finished latents, and the next step starts from those that it returns."""

    def halve(pipe: Any, step: int, timestep: float, state: dict[str, Any]) -> dict[str, Any]:
        return {"latents": state["latents"] / 2} if step == 1 else {}

    options: dict[str, Any] = {
        "num_inference_steps": 4,
        "seed": 3,
        "output_type": "np",
        "sampler": "dpmpp-2m",
    }
    actual, expected = (
        pipe("a fox", callback_on_step_end=halve, **options).images for pipe in (on_gpu()[1], cpu)
    )
    np.testing.assert_array_equal(actual, expected)


def test_a_device_that_fails_on_the_way(on_gpu: Open) -> None:
    gpu, pipeline = on_gpu("lazy")
    steps = run_steps(pipeline.engine("denoiser"), [trajectory(pipeline, 30, 1)], 4)
    next(steps)
    gpu.fault = "CUDA_ERROR_ECC_UNCORRECTABLE"
    with pytest.raises(EngineError, match=r"CUDA_ERROR_ECC_UNCORRECTABLE.*restart the process"):
        next(steps)
