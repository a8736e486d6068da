"""Compare whole images of every sampler with diffusers, and run all samplers in one batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch

from sd2rt.engines.bundle.sampler_config import SamplerName
from sd2rt.export.reference import reference_scheduler
from sd2rt.runtime import Pipeline
from sd2rt.runtime.request.request import make_request
from sd2rt.runtime.samplers import sampler_config

from .pipelines import other_task
from .test_images import NEGATIVE, PROMPT, difference

NAMES: tuple[SamplerName, ...] = get_args(SamplerName)
# dpmpp-sde has torchsde's noise, ipndm has timesteps of its own: only their tables are compared with diffusers, which
# does not have the last four.
TABLES_ONLY = ("dpmpp-sde", "ipndm", "restart", "dpmpp-2s-a", "dpmpp-3m-sde", "dpm-fast")
COMPARED = tuple(name for name in NAMES if name not in TABLES_ONLY)
SEED = 17


def expected(
    pair: Any,
    name: str,
    schedule: str | None = None,
    *,
    zero_snr: bool = False,
    task: Any = None,
    **options: Any,
) -> Any:
    noise = pair.checkpoint.noise.model_copy(update={"rescale_betas_zero_snr": zero_snr})
    pipeline = pair.reference if task is None else other_task(pair.reference, task)
    pipeline.scheduler = reference_scheduler(noise, sampler_config(name, pair.checkpoint.sampler, schedule))
    generator = torch.Generator().manual_seed(SEED)
    return pipeline(PROMPT, negative_prompt=NEGATIVE, generator=generator, output_type="np", **options).images


def generated(pair: Any, name: str, schedule: str | None = None, **options: Any) -> Any:
    return pair.pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        seed=SEED,
        sampler=name,
        schedule=schedule,
        output_type="np",
        **options,
    ).images


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("variant", ["base", "v"])
def test_every_sampler(request: Any, record: Any, variant: str, name: str) -> None:
    pair = request.getfixturevalue(variant)
    for steps in (4, 11):
        theirs = expected(pair, name, num_inference_steps=steps)
        ours = generated(pair, name, num_inference_steps=steps)
        record("Every sampler", f"{variant}, {name}, {steps} steps", *difference(ours, theirs))


@pytest.mark.parametrize("name", [name for name in COMPARED if name not in ("lcm", "tcd")])
def test_every_sampler_from_an_image(base: Any, record: Any, name: str) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
    from PIL import Image

    image = Image.fromarray(picture)
    options: dict[str, Any] = {"image": image, "strength": 0.6, "num_inference_steps": 8}
    theirs = expected(base, name, task="image-to-image", **options)
    ours = generated(base, name, **options)
    record("Every sampler", f"base, {name}, from an image, strength 0.6", *difference(ours, theirs))


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("euler", "karras"),
        ("heun", "exponential"),
        ("dpm2", "beta"),
        ("dpmpp-2m", "karras"),
        ("dpmpp-2m", "lambdas"),
        ("dpmpp-2m-sde", "exponential"),
        ("dpmpp-2s", "beta"),
        ("deis", "karras"),
        ("unipc", "karras"),
        ("sa-solver", "beta"),
    ],
)
def test_schedules(v: Any, record: Any, name: str, schedule: str) -> None:
    theirs = expected(v, name, schedule, num_inference_steps=7)
    ours = generated(v, name, schedule, num_inference_steps=7)
    record("Schedules", f"v, {name}, {schedule}, 7 steps", *difference(ours, theirs))


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "euler-a", "dpmpp-2m", "unipc"])
def test_zero_terminal_snr(v: Any, record: Any, name: str) -> None:
    options: dict[str, Any] = {"num_inference_steps": 6, "guidance_rescale": 0.7}
    theirs = expected(v, name, "trailing", zero_snr=True, **options)
    ours = generated(v, name, "trailing", rescale_betas_zero_snr=True, **options)
    record("Zero terminal SNR", f"v, {name}, trailing, 6 steps", *difference(ours, theirs))


@pytest.fixture(scope="session")
def wide(small_bundle: Any) -> Iterator[Pipeline]:
    with Pipeline.open(small_bundle, max_batch=len(NAMES)) as pipeline:
        yield pipeline


def test_every_sampler_in_one_batch(wide: Pipeline, table: Any) -> None:
    """Requests that differ in sampler, steps, guidance and prompt give the same images as alone."""
    requests = [
        make_request(
            prompt=f"{PROMPT} {index}",
            seed=index,
            sampler=name,
            num_inference_steps=3 + index % 4,
            guidance_scale=1.0 + index % 3 * 3,
            eta=0.5 if name in ("ddim", "tcd") else 0.0,
            output_type="latent",
        )
        for index, name in enumerate(NAMES)
    ]
    largest = 0
    with wide.stream_requests(requests) as run:
        for progress in run:
            largest = max(largest, progress.images)
        together = run.result()
    assert largest == len(NAMES)
    worst = 0.0
    for request, output in zip(requests, together, strict=True):
        (alone,) = wide.generate([request])
        error = float(np.abs(output.images - alone.images).max() / np.abs(alone.images).max())
        assert error <= 1e-5, request.sampler
        worst = max(worst, error)
    table.add("Batches", "all samplers in one batch, against each alone", f"{worst:.1e} of max", "1e-5")
