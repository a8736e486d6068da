"""Compare whole images with diffusers: the same seed gives the same image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sd2rt.export.reference import reference_scheduler
from sd2rt.runtime.samplers import sampler_config

SAMPLERS = ("ddim", "pndm", "euler", "dpmpp-2m")
STEPS = (2, 3, 10, 25, 50)
MULTIPLES_OF_8 = (
    *((72, 64), (64, 88), (136, 120), (104, 72), (184, 112)),
    *((88, 200), (120, 136), (168, 152), (248, 72)),
)
"""Widths and heights; latents have odd sides before the first, second or third halving."""
PROMPT = "a lighthouse on a cliff at dusk, oil painting!"
NEGATIVE = "blurry, text"


def reference(
    pair: Any, sampler: str | None = None, spacing: Any = None, *, seeds: Any, **options: Any
) -> Any:
    """diffusers' images [n, H, W, 3] in [0, 1], or latents; one generator for each seed."""
    default = pair.checkpoint.sampler
    config = default if sampler is None else sampler_config(sampler, default, spacing)
    pair.reference.scheduler = reference_scheduler(pair.checkpoint.noise, config)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pair.reference(generator=generators, **{"output_type": "np", **options}).images
    return images if isinstance(images, np.ndarray) else images.numpy()


def difference(ours: NDArray[Any], expected: NDArray[Any]) -> tuple[float, float]:
    """Worst pixel error, of 255, and PSNR in dB."""
    assert ours.shape == expected.shape
    error = ours.astype(np.float64) - expected.astype(np.float64)
    square = float(np.square(error).mean())
    return float(np.abs(error).max() * 255), math.inf if square == 0 else -10 * math.log10(square)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("variant", ["base", "v"])
def test_samplers_and_steps(request: Any, record: Any, variant: str, sampler: str, steps: int) -> None:
    pair = request.getfixturevalue(variant)
    options: dict[str, Any] = {"num_inference_steps": steps, "negative_prompt": NEGATIVE}
    expected = reference(pair, sampler, seeds=[11], prompt=PROMPT, **options)
    ours = pair.pipeline(PROMPT, seed=11, sampler=sampler, output_type="np", **options).images
    record("Samplers", f"{variant}, {sampler}, {steps} steps", *difference(ours, expected))
    assert expected.std() > 0.05, "a flat picture proves nothing"


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("variant", ["base", "v"])
def test_spacings(request: Any, record: Any, variant: str, sampler: str, spacing: str) -> None:
    pair = request.getfixturevalue(variant)
    expected = reference(pair, sampler, spacing, seeds=[3], prompt=PROMPT, num_inference_steps=7)
    ours = pair.pipeline(
        PROMPT, seed=3, sampler=sampler, schedule=spacing, num_inference_steps=7, output_type="np"
    ).images
    record("Timestep spacings", f"{variant}, {sampler}, {spacing}, 7 steps", *difference(ours, expected))


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 64), (64, 192), (192, 128)])
@pytest.mark.parametrize("variant", ["base", "v"])
def test_sizes(request: Any, record: Any, variant: str, width: int, height: int) -> None:
    pair = request.getfixturevalue(variant)
    options: dict[str, Any] = {"num_inference_steps": 4, "width": width, "height": height}
    expected = reference(pair, seeds=[5], prompt=PROMPT, **options)
    ours = pair.pipeline(PROMPT, seed=5, output_type="np", **options).images
    assert ours.shape == (1, height, width, 3)
    record("Sizes", f"{variant}, {width}x{height}, default sampler, 4 steps", *difference(ours, expected))


@pytest.mark.parametrize(("width", "height"), MULTIPLES_OF_8)
def test_sizes_in_multiples_of_8(base: Any, record: Any, width: int, height: int) -> None:
    options: dict[str, Any] = {"num_inference_steps": 4, "width": width, "height": height}
    expected = reference(base, seeds=[5], prompt=PROMPT, **options)
    ours = base.pipeline(PROMPT, seed=5, output_type="np", **options).images
    assert ours.shape == (1, height, width, 3)
    record("Sizes in multiples of 8", f"base, {width}x{height}, 4 steps", *difference(ours, expected))


@pytest.mark.parametrize(
    ("scale", "rescale"), [(0.0, 0.0), (1.0, 0.0), (1.5, 0.0), (7.5, 0.3), (7.5, 0.7), (12.0, 1.0)]
)
@pytest.mark.parametrize("variant", ["base", "v"])
def test_guidance(request: Any, record: Any, variant: str, scale: float, rescale: float) -> None:
    pair = request.getfixturevalue(variant)
    options: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": scale, "guidance_rescale": rescale}
    expected = reference(pair, seeds=[2], prompt=PROMPT, **options)
    ours = pair.pipeline(PROMPT, seed=2, output_type="np", **options).images
    record("Guidance", f"{variant}, scale {scale:g}, rescale {rescale:g}", *difference(ours, expected))


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("variant", ["base", "v"])
def test_fresh_noise(request: Any, record: Any, variant: str, eta: float) -> None:
    """Two images, each with its own generator, which would show a different order of draws."""
    pair = request.getfixturevalue(variant)
    options: dict[str, Any] = {"num_inference_steps": 8, "eta": eta, "num_images_per_prompt": 2}
    expected = reference(pair, "ddim", seeds=[7, 8], prompt=PROMPT, **options)
    ours = pair.pipeline(PROMPT, seed=7, sampler="ddim", output_type="np", **options).images
    record("Fresh noise", f"{variant}, ddim, eta {eta:g}, 2 images", *difference(ours, expected))


@pytest.mark.parametrize("variant", ["base", "v"])
def test_batch(request: Any, record: Any, variant: str) -> None:
    pair = request.getfixturevalue(variant)
    prompts, negatives = [PROMPT, "a red fox", ""], [NEGATIVE, "", "a dog"]
    options: dict[str, Any] = {
        "num_inference_steps": 5,
        "num_images_per_prompt": 2,
        "negative_prompt": negatives,
    }
    expected = reference(pair, seeds=range(20, 26), prompt=prompts, **options)
    ours = pair.pipeline(prompts, seed=20, output_type="np", **options)
    assert ours.seeds == list(range(20, 26))
    record("Batches", f"{variant}, 3 prompts, 2 images each", *difference(ours.images, expected))


def test_long_prompt(base: Any, record: Any) -> None:
    prompt = "a very, " * 60 + "long prompt"
    expected = reference(base, seeds=[1], prompt=prompt, num_inference_steps=3)
    with pytest.warns(UserWarning, match="long prompt"):
        ours = base.pipeline(prompt, seed=1, num_inference_steps=3, output_type="np").images
    record("Prompts", "prompt truncated to 77 tokens", *difference(ours, expected))


def test_embeddings(base: Any, record: Any) -> None:
    """prompt_embeds of another length than 77."""
    rng = np.random.default_rng(4)
    embeds, negative = rng.standard_normal((2, 1, 154, 32)).astype(np.float32)
    options: dict[str, Any] = {"num_inference_steps": 4}
    expected = reference(
        base,
        seeds=[6],
        prompt_embeds=torch.from_numpy(embeds),
        negative_prompt_embeds=torch.from_numpy(negative),
        **options,
    )
    ours = base.pipeline(
        prompt_embeds=embeds, negative_prompt_embeds=negative, seed=6, output_type="np", **options
    )
    record("Prompts", "prompt_embeds of 154 tokens", *difference(ours.images, expected))


def test_given_latents(base: Any, record: Any) -> None:
    noise = np.random.default_rng(5).standard_normal((1, 4, 8, 8)).astype(np.float32)
    options: dict[str, Any] = {"num_inference_steps": 4}
    expected = reference(base, "euler", seeds=[0], prompt=PROMPT, latents=torch.from_numpy(noise), **options)
    ours = base.pipeline(PROMPT, latents=noise, sampler="euler", output_type="np", **options).images
    record("Prompts", "latents from the caller, euler", *difference(ours, expected))


def test_custom_schedules(v: Any, record: Any) -> None:
    timesteps = [901, 700, 333, 40]
    expected = reference(v, "euler", seeds=[1], prompt=PROMPT, timesteps=timesteps)
    ours = v.pipeline(PROMPT, seed=1, sampler="euler", timesteps=timesteps, output_type="np").images
    record("Custom schedules", "v, euler, 4 timesteps", *difference(ours, expected))
    sigmas = [14.6, 6.0, 2.0, 0.5, 0.0]
    expected = reference(v, "euler", seeds=[1], prompt=PROMPT, sigmas=sigmas)
    ours = v.pipeline(PROMPT, seed=1, sampler="euler", sigmas=sigmas, output_type="np").images
    record("Custom schedules", "v, euler, 4 sigmas", *difference(ours, expected))


def test_pil_and_latent_outputs(base: Any, table: Any) -> None:
    latents = reference(base, seeds=[9], prompt=PROMPT, num_inference_steps=5, output_type="latent")
    ours = base.pipeline(PROMPT, seed=9, num_inference_steps=5, output_type="latent").images
    error = float(np.abs(ours - latents).max() / np.abs(latents).max())
    table.add("Latents", "base, default sampler, 5 steps", f"{error:.1e} of max", "1e-4")
    assert error <= 1e-4
    image = base.pipeline(PROMPT, seed=9, num_inference_steps=5).images[0]
    generator = torch.Generator().manual_seed(9)
    expected = base.reference(PROMPT, num_inference_steps=5, generator=generator).images[0]
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_half_precision(half: Any, table: Any, sampler: str) -> None:
    options: dict[str, Any] = {"num_inference_steps": 10}
    expected = reference(half, sampler, seeds=[1], prompt=PROMPT, **options)
    ours = half.pipeline(PROMPT, seed=1, sampler=sampler, output_type="np", **options).images
    _, psnr = difference(ours, expected)
    latents = reference(half, sampler, seeds=[1], prompt=PROMPT, output_type="latent", **options)
    our_latents = half.pipeline(PROMPT, seed=1, sampler=sampler, output_type="latent", **options).images
    error = float(np.linalg.norm(our_latents - latents) / np.linalg.norm(latents))
    label = f"base, {sampler}, 10 steps, ONNX Runtime on the CPU"
    table.add(
        "fp16 against PyTorch fp32", label, f"{psnr:.0f} dB, latents {error:.1e}", "35 dB, latents 2e-2"
    )
    assert psnr >= 35
    assert error <= 2e-2
