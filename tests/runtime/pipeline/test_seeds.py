"""Initial noise of images: per image, by either generator, and between two seeds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sd2rt.engines.errors import RequestError
from sd2rt.runtime import Pipeline
from sd2rt.runtime.request.call import split_call
from sd2rt.runtime.request.request import make_request
from sd2rt.runtime.rng.select import make_generator
from sd2rt.runtime.rng.slerp import slerp

RNGS = ("cpu", "cuda", "cuda:40x1024")
SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def pipe(small_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(small_bundle, threads=1) as pipeline:
        yield pipeline


def noises(pipe: Pipeline, prompt: str | list[str] = "a", **options: Any) -> list[NDArray[np.float32]]:
    """Initial latents of each image of a call; DDIM uses the noise unscaled."""
    with pipe.stream(prompt, sampler="ddim", num_inference_steps=2, **options) as run:
        return [job.trajectories[0].latents for group in run.jobs for job in group]


@pytest.mark.parametrize("rng", RNGS)
def test_noise_is_the_seed_s(pipe: Pipeline, rng: str) -> None:
    (noise,) = noises(pipe, seed=7, rng=rng)
    np.testing.assert_array_equal(noise, make_generator(rng, 7).randn(SHAPE))


@pytest.mark.parametrize("rng", RNGS)
@pytest.mark.parametrize("prompt", ["a", ["a", "b"]], ids=["one prompt", "two prompts"])
def test_every_image_of_a_batch_can_be_made_alone(pipe: Pipeline, rng: str, prompt: Any) -> None:
    together = noises(pipe, prompt, seed=7, rng=rng, num_images_per_prompt=3)
    for index, noise in enumerate(together):
        (alone,) = noises(pipe, seed=7 + index, rng=rng)
        np.testing.assert_array_equal(noise, alone)
    assert len({noise.tobytes() for noise in together}) == len(together)


def test_generators_differ(pipe: Pipeline) -> None:
    (cpu,), (cuda,) = noises(pipe, seed=7), noises(pipe, seed=7, rng="cuda")
    assert not np.array_equal(cpu, cuda)


@pytest.mark.parametrize("rng", RNGS)
def test_variation_goes_from_one_seed_to_another(pipe: Pipeline, rng: str) -> None:
    at = {
        strength: noises(pipe, seed=7, variation_seed=9, variation_strength=strength, rng=rng)[0]
        for strength in (0, 0.25, 1)
    }
    (first,), (second,) = noises(pipe, seed=7, rng=rng), noises(pipe, seed=9, rng=rng)
    np.testing.assert_array_equal(at[0], first)
    np.testing.assert_array_equal(at[1], second)
    np.testing.assert_array_equal(at[0.25], slerp(first, second, 0.25))


@pytest.mark.parametrize("prompt", ["a", ["a", "b", "c"]], ids=["one prompt", "three prompts"])
def test_images_of_a_call_are_variations_of_one(pipe: Pipeline, prompt: Any) -> None:
    each = 3 if prompt == "a" else 1
    variation: dict[str, Any] = {"variation_strength": 0.3, "num_images_per_prompt": each}
    together = noises(pipe, prompt, seed=7, variation_seed=20, **variation)
    for index, noise in enumerate(together):
        (alone,) = noises(pipe, seed=7, variation_seed=20 + index, variation_strength=0.3)
        np.testing.assert_array_equal(noise, alone)
    output = pipe(prompt, seed=7, variation_seed=20, num_inference_steps=1, output_type="latent", **variation)
    assert output.seeds == [7, 7, 7]


def test_later_draws_are_the_first_seed_s(pipe: Pipeline) -> None:
    """At full strength noise is the other seed's, and what the encoder and each step draw is not."""
    options: dict[str, Any] = {
        "image": Image.new("RGB", (64, 64), "teal"),
        "strength": 1.0,
        "num_inference_steps": 2,
        "sampler": "ddim",
        "eta": 1.0,
        "variation_strength": 1.0,
        "variation_seed": 9,
    }
    with pipe.stream("a", seed=7, **options) as run:
        trajectory = run.jobs[0][0].trajectories[0]
        ours = make_generator("cpu", 7)
        encoded = run.jobs[0][0].conditioning.sample(run.jobs[0][0].conditioning.image_moments, ours)
        ours.randn(SHAPE)
        assert trajectory.image_latents is not None
        np.testing.assert_array_equal(trajectory.image_latents, encoded)
        start = trajectory.plan.start_noise
        assert start is not None
        expected = encoded * np.float32(start[0]) + make_generator("cpu", 9).randn(SHAPE) * np.float32(
            start[1]
        )
        np.testing.assert_array_equal(trajectory.latents, expected)
        np.testing.assert_array_equal(trajectory.generator.randn(SHAPE), ours.randn(SHAPE))


def test_seeds_of_a_request() -> None:
    assert [make_request(prompt="a").seeds_of(5, i) for i in (0, 2)] == [(5, None), (7, None)]
    varied = make_request(prompt="a", variation_seed=9, variation_strength=0.1)
    assert [varied.seeds_of(5, i) for i in (0, 2)] == [(5, 9), (5, 11)]
    assert make_request(prompt="a", variation_seed=9).seeds_of(5, 2) == (7, None)


def test_division_of_a_call() -> None:
    plain = split_call(["a", "b"], {"seed": 5, "num_images_per_prompt": 2, "variation_seed": 9})
    assert [(request.seed, request.variation_seed) for request in plain] == [(5, 9), (7, 9)]
    varied = split_call(
        ["a", "b"], {"seed": 5, "num_images_per_prompt": 2, "variation_seed": 9, "variation_strength": 1}
    )
    assert [(request.seed, request.variation_seed) for request in varied] == [(5, 9), (5, 11)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variation_strength": 0.2}, "variation_seed is not"),
        ({"variation_strength": 1.2, "variation_seed": 3}, "variation_strength is 1.2"),
        ({"variation_strength": float("nan"), "variation_seed": 3}, "variation_strength is nan"),
        (
            {"variation_strength": 0.2, "variation_seed": 3, "latents": np.zeros((1, *SHAPE))},
            "latents and variation_strength are both set",
        ),
        ({"variation_seed": 1.5}, "variation_seed is 1.5"),
        ({"rng": "gpu"}, "rng is 'gpu': use cpu, cuda, cuda:N"),
    ],
)
def test_bad_request(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_request(prompt="a", **fields)
