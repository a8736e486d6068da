"""Compare inpainting with UNets of four channels with diffusers' pipeline, latent by latent at every step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sd2rt.export.reference import reference_scheduler
from sd2rt.runtime.samplers import sampler_config

from .pipelines import other_task
from .test_images import NEGATIVE, PROMPT
from .test_pictures import pictures

SAMPLERS = (
    *("ddim", "ddpm", "pndm", "lms", "euler", "euler-a", "heun", "dpm2", "dpm2-a", "dpmpp-2s", "dpmpp-2m"),
    *("dpmpp-2m-sde", "deis", "unipc", "sa-solver", "lcm", "tcd"),
)
"""diffusers' samplers that add noise to images, but dpmpp-sde, whose noise there is that of another generator."""
BOUND = 1e-4


def reference(pair: Any, sampler: str, seed: int, **options: Any) -> list[NDArray[Any]]:
    """Latents [1, C, h, w] of diffusers' pipeline after each step."""
    pipeline = other_task(pair.reference, "inpainting")
    pipeline.scheduler = reference_scheduler(
        pair.checkpoint.noise, sampler_config(sampler, pair.checkpoint.sampler)
    )
    steps: list[NDArray[Any]] = []

    def record(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(tensors["latents"].numpy().copy())
        return tensors

    width, height = options["image"].size
    pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        generator=[torch.Generator().manual_seed(seed)],
        output_type="latent",
        callback_on_step_end=record,
        width=width,
        height=height,
        **options,
    )
    return steps


def worst_error(pair: Any, sampler: str, seed: int = 3, **options: Any) -> float:
    """Largest difference of latents after any step, as a share of the step's largest latent."""
    expected = reference(pair, sampler, seed, **options)
    with pair.pipeline.stream(
        PROMPT, negative_prompt=NEGATIVE, seed=seed, sampler=sampler, output_type="latent", **options
    ) as run:
        ours = [progress.latents() for progress in run]
        (final,) = run.result()
    assert len(ours) == len(expected)
    assert np.array_equal(ours[-1], final.images)
    assert expected[-1].std() > 0.1, "flat latents prove nothing"
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(ours, expected, strict=True))


CASES = [
    *((sampler, "base", 1.0, 7.5) for sampler in SAMPLERS),
    *((sampler, "v", 0.6, 7.5) for sampler in SAMPLERS),
    *((sampler, "base", 0.6, 1.0) for sampler in ("ddim", "euler-a", "dpm2", "dpmpp-2m")),
]


@pytest.mark.parametrize(("sampler", "variant", "strength", "scale"), CASES)
def test_every_step(
    request: Any, table: Any, sampler: str, variant: str, strength: float, scale: float
) -> None:
    pair = request.getfixturevalue(variant)
    options = {**pictures(pair, "inpainting"), "strength": strength, "guidance_scale": scale}
    error = worst_error(pair, sampler, num_inference_steps=7, **options)
    label = f"{variant}, {sampler}, strength {strength:g}, guidance {scale:g}"
    table.add("Masks without a channel", label, f"{error:.1e} of max", f"{BOUND:g}")
    assert error <= BOUND


@pytest.mark.parametrize("sampler", ["euler", "unipc"])
def test_other_sizes_and_the_default_strength(base: Any, sampler: str) -> None:
    options = pictures(base, "inpainting", (128, 192))
    assert worst_error(base, sampler, num_inference_steps=5, guidance_scale=3.0, **options) <= BOUND


def test_the_fresh_noise_of_ddim(v: Any) -> None:
    options = pictures(v, "inpainting")
    assert worst_error(v, "ddim", num_inference_steps=6, eta=0.7, strength=0.8, **options) <= BOUND


def test_turbo(turbo: Any) -> None:
    options = {**pictures(turbo, "inpainting"), "guidance_scale": 0.0, "strength": 1.0}
    for steps in (1, 2, 4):
        assert worst_error(turbo, "euler", num_inference_steps=steps, **options) <= BOUND
