"""Masks given to a denoiser without an input for them: the kept area, its neighbours, and every way to run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError
from sd2rt.runtime import AsyncPipeline, Pipeline, Request
from sd2rt.runtime.denoising.stepper import Stepper
from sd2rt.runtime.denoising.trajectory import Trajectory
from sd2rt.runtime.rng.torch_cpu import Generator

CLOSE = 1e-5
IMAGE = np.random.default_rng(8).integers(0, 256, (64, 64, 3), np.uint8)
MASK = np.zeros((64, 64), np.bool_)
MASK[16:48, 8:40] = True
KEPT = ~MASK[::8, ::8]
COMMON: dict[str, Any] = {"num_inference_steps": 5, "output_type": "latent", "prompt": "a fox", "seed": 3}


@pytest.fixture(scope="module")
def pipe(small_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(small_bundle, threads=1) as pipeline:
        yield pipeline


def masked(mask: NDArray[np.bool_] = MASK, **options: Any) -> Request[Any]:
    return Request(**{**COMMON, "image": IMAGE, "mask_image": mask, "sampler": "euler", **options})


def latents(pipe: Pipeline, *requests: Request[Any]) -> list[NDArray[np.float32]]:
    return [output.images[0] for output in pipe.generate(requests)]


def trajectory(pipe: Pipeline, request: Request[Any]) -> Trajectory:
    (job,) = pipe.prepare(request, request.seed or 0)
    (only,) = job.trajectories
    return only


def encoded(pipe: Pipeline) -> NDArray[np.float32]:
    """Latents of the image, sampled with the seed."""
    (job,) = pipe.prepare(masked(strength=0.6), 3)
    (only,) = job.trajectories
    assert only.image_latents is not None
    return only.image_latents


@pytest.mark.parametrize("sampler", ["euler", "dpmpp-2m", "heun", "ddim"])
def test_a_white_mask_is_image_to_image(pipe: Pipeline, sampler: str) -> None:
    options: dict[str, Any] = {"sampler": sampler, "strength": 0.6}
    with pytest.warns(UserWarning, match="repaints everything"):
        (whole,) = latents(pipe, masked(np.ones_like(MASK), **options))
    (plain,) = latents(pipe, Request(image=IMAGE, **COMMON, **options))
    np.testing.assert_array_equal(whole, plain)


@pytest.mark.filterwarnings("ignore:the mask repaints nothing")
@pytest.mark.parametrize("grid", ["diffusers", "a1111"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("sampler", ["euler-a", "unipc", "heun"])
def test_a_black_mask_is_the_image(pipe: Pipeline, sampler: str, strength: float, grid: Any) -> None:
    request = masked(
        np.zeros_like(MASK), sampler=sampler, strength=strength, grid=grid, num_inference_steps=9
    )
    with pytest.warns(UserWarning, match="repaints nothing"):
        (nothing,) = latents(pipe, request)
    original = trajectory(pipe, request).image_latents if grid == "a1111" else encoded(pipe)
    np.testing.assert_array_equal(nothing, original)


def test_the_area_ends_as_the_image(pipe: Pipeline) -> None:
    (result,) = latents(pipe, masked(strength=0.6))
    (plain,) = latents(pipe, Request(image=IMAGE, sampler="euler", strength=0.6, **COMMON))
    np.testing.assert_array_equal(result[:, KEPT], encoded(pipe)[:, KEPT])
    assert (result[:, ~KEPT] != plain[:, ~KEPT]).all(), "the network has seen the same area"


def test_neighbours_do_not_change(pipe: Pipeline) -> None:
    neighbours = [
        Request(**COMMON | {"sampler": "dpmpp-2m", "prompt": "snow"}),
        Request(image=IMAGE, strength=0.8, **COMMON | {"sampler": "ddim", "eta": 0.5, "seed": 7}),
    ]
    same = {"image": IMAGE, "sampler": "euler", "strength": 0.6, **COMMON}
    before = latents(pipe, Request(**same), *neighbours)
    after = latents(pipe, masked(strength=0.6), *neighbours)
    for a, b in zip(after[1:], before[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(after[0], before[0])
    np.testing.assert_allclose(after[0], latents(pipe, masked(strength=0.6))[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("grid", ["diffusers", "a1111"])
def test_waiting_and_joining(pipe: Pipeline, grid: Any) -> None:
    """Trajectories that take turns, wait and meet end as they do alone."""
    requests = [
        masked(grid=grid, strength=0.8, sampler="euler-a"),
        masked(MASK.T.copy(), grid=grid, strength=0.8, sampler="dpmpp-2m", seed=5),
        Request(**COMMON | {"sampler": "dpmpp-2m", "seed": 9}),
    ]
    alone = [latents(pipe, request)[0] for request in requests]
    members = [trajectory(pipe, request) for request in requests]
    stepper = Stepper(lambda: pipe.engine("denoiser"))
    for member in members:
        stepper.join(member)
    calls = [(0,), (1,), (2, 0), (1, 2), (0, 1, 2), (2,)]
    while not all(member.finished for member in members):
        chosen = [members[index] for index in (calls.pop(0) if calls else (0, 1, 2))]
        if chosen := [member for member in chosen if not member.finished]:
            stepper.step(chosen)
            stepper.settle()
    stepper.collect(members)
    for member, expected in zip(members, alone, strict=True):
        assert np.abs(member.latents - expected).max() <= CLOSE * np.abs(expected).max()


def test_previews_show_the_kept_area_and_a_stop_keeps_it(pipe: Pipeline) -> None:
    request = masked(strength=0.6, output_type="np", paste=True)
    with pipe.stream_planned(pipe.plan([request])) as run:
        progress = next(iter(run))
        picture = np.asarray(progress.preview(decoder=True), int)
        (output,) = run.stop()
    # Pasting is part of previews, so what the mask keeps is the image itself.
    assert np.abs(picture[~MASK] - IMAGE[~MASK]).max() <= 1
    assert np.abs(output.images[0][~MASK] * 255 - IMAGE[~MASK]).max() <= 0.01


def test_asyncio(pipe: Pipeline, small_bundle: Path) -> None:
    requests = [masked(strength=0.6), masked(MASK.T.copy(), seed=4, sampler="ddim"), Request(**COMMON)]

    async def together() -> list[NDArray[np.float32]]:
        async with await AsyncPipeline.open(small_bundle, threads=1) as served:
            outputs = await asyncio.gather(*(served.generate([request]) for request in requests))
        return [output.images[0] for (output,) in outputs]

    for actual, request in zip(asyncio.run(together()), requests, strict=True):
        (expected,) = latents(pipe, request)
        assert np.abs(actual - expected).max() <= CLOSE * np.abs(expected).max()


def test_defaults_and_images_of_one_request(pipe: Pipeline) -> None:
    (output,) = pipe.generate([masked(num_images_per_prompt=2)])
    for index, seed in enumerate((3, 4)):
        (alone,) = latents(pipe, masked(seed=seed, strength=1.0))
        assert np.abs(output.images[index] - alone).max() <= CLOSE * np.abs(alone).max()


def test_latents_from_the_caller_are_the_noise(pipe: Pipeline) -> None:
    generator = Generator(3)
    generator.randn((4, 8, 8))  # the encoder's
    noise = generator.randn((4, 8, 8))[None]
    np.testing.assert_array_equal(latents(pipe, masked(latents=noise)), latents(pipe, masked()))
    with pytest.raises(RequestError, match="latents cannot be combined with an image to start from"):
        latents(pipe, masked(latents=noise, strength=0.5))


def test_other_conditions_have_no_masks(small_depth_bundle: Path) -> None:
    with (
        Pipeline.open(small_depth_bundle, threads=1) as depth,
        pytest.raises(RequestError, match="inpainting needs a bundle of kind base, v, turbo or inpainting"),
    ):
        latents(depth, masked())
