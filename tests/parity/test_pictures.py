"""Compare images that start from images with diffusers' pipelines: the same seed gives the same image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from sd2rt.engines.bundle.model_kinds import KINDS, TaskName
from sd2rt.engines.bundle.model_kinds import TASKS as ALL_TASKS
from sd2rt.export.parity import sample_pictures
from sd2rt.export.reference import reference_scheduler
from sd2rt.runtime.request.request import make_request
from sd2rt.runtime.samplers import sampler_config

from .pipelines import other_task
from .test_images import MULTIPLES_OF_8, NEGATIVE, PROMPT, SAMPLERS, difference

TASKS: list[tuple[str, TaskName]] = [
    ("base", "image-to-image"),
    ("v", "image-to-image"),
    ("turbo", "image-to-image"),
    ("inpainting", "inpainting"),
    ("depth", "depth-to-image"),
    ("upscaler", "upscaling"),
]
CASES = [
    (variant, task, strength)
    for variant, task in TASKS
    for strength in ((0.5, 1.0) if "strength" in ALL_TASKS[task].optional else (None,))
]
"""TASKS with strengths, for tasks that take one."""
SIZED = ("text-to-image", "inpainting")
"""Tasks for which diffusers takes the output size as arguments; the others use the image's size."""


def reference(pair: Any, task: TaskName, sampler: str | None = None, *, seeds: Any, **options: Any) -> Any:
    """diffusers' images [n, H, W, 3] in [0, 1], and the input of its first UNet call."""
    default = pair.checkpoint.sampler
    config = default if sampler is None else sampler_config(sampler, default)
    pipeline = other_task(pair.reference, task)
    pipeline.scheduler = reference_scheduler(pair.checkpoint.noise, config)
    unet_inputs: list[torch.Tensor] = []

    def record_input(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if not unet_inputs:
            unet_inputs.append(inputs[0])

    hook = pipeline.unet.register_forward_pre_hook(record_input)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    if task in SIZED and "image" in options:
        sides = dict(zip(("width", "height"), options["image"].size, strict=True))
        options = {**sides, **options}
    try:
        images = pipeline(generator=generators, output_type="np", **options).images
    finally:
        hook.remove()
    return images, unet_inputs[0].numpy()


def pictures(pair: Any, task: TaskName, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """The sample pictures without a strength, at ``size`` or the default size."""
    manifest = pair.pipeline.manifest
    if size is not None:
        manifest = manifest.model_copy(update={"native_sizes": (size,)})
    samples = sample_pictures(manifest, task)
    samples.pop("strength", None)
    return samples


def strength_option(strength: float | None) -> dict[str, Any]:
    return {} if strength is None else {"strength": strength}


@pytest.mark.parametrize("scale", [7.5, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("variant", "task", "strength"), CASES)
def test_samplers(
    request: Any,
    record: Any,
    variant: str,
    task: TaskName,
    sampler: str,
    strength: float | None,
    scale: float,
) -> None:
    pair = request.getfixturevalue(variant)
    options = {
        **pictures(pair, task),
        "guidance_scale": scale,
        "num_inference_steps": 6,
        **strength_option(strength),
    }
    expected, _ = reference(pair, task, sampler, seeds=[4], prompt=PROMPT, **options)
    ours = pair.pipeline(PROMPT, seed=4, sampler=sampler, output_type="np", **options).images
    suffix = "" if strength is None else f", strength {strength:g}"
    record(
        f"Pictures: {task}", f"{variant}, {sampler}{suffix}, guidance {scale:g}", *difference(ours, expected)
    )
    assert expected.std() > 0.02, "a flat picture proves nothing"


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_turbo(turbo: Any, record: Any, steps: int, scale: float) -> None:
    options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": scale}
    expected, _ = reference(turbo, "text-to-image", seeds=[1], prompt=PROMPT, height=64, width=64, **options)
    ours = turbo.pipeline(PROMPT, seed=1, output_type="np", **options).images
    record(
        "Pictures: text-to-image", f"turbo, {steps} steps, guidance {scale:g}", *difference(ours, expected)
    )


def test_turbo_defaults(turbo: Any) -> None:
    """By default one step with one row, for which the checkpoint was distilled."""
    with turbo.pipeline.stream(PROMPT, seed=1) as run:
        (trajectory,) = run.jobs[0][0].trajectories
        assert (run.total, trajectory.texts[0].rows, trajectory.timesteps.tolist()) == (1, 1, [999.0])
        run.result()


@pytest.mark.parametrize("strength", [0.02, 0.2, 0.58, 0.999])
@pytest.mark.parametrize(("variant", "task"), TASKS[:5])
def test_strengths(request: Any, record: Any, variant: str, task: TaskName, strength: float) -> None:
    pair = request.getfixturevalue(variant)
    options = {**pictures(pair, task), "strength": strength, "num_inference_steps": 50, "guidance_scale": 7.5}
    expected, _ = reference(pair, task, seeds=[4], prompt=PROMPT, negative_prompt=NEGATIVE, **options)
    ours = pair.pipeline(PROMPT, negative_prompt=NEGATIVE, seed=4, output_type="np", **options)
    record("Strength", f"{variant}, strength {strength:g}, 50 steps", *difference(ours.images, expected))


def _channels(pair: Any) -> dict[str, slice]:
    """Channels of the latents and of each condition in the UNet's first input."""
    places, start = {"start": slice(0, 4)}, 4
    for condition in KINDS[pair.checkpoint.variant].conditions:
        places[condition.name] = slice(start, start + condition.channels)
        start += condition.channels
    return places


@pytest.mark.parametrize(("variant", "task", "strength"), CASES)
def test_what_the_denoiser_is_shown(
    request: Any, table: Any, variant: str, task: TaskName, strength: float | None
) -> None:
    """Compare the noised start, mask, latents of the masked image, depth, and noised low-resolution image."""
    pair = request.getfixturevalue(variant)
    size = (128, 64)
    options = {
        **pictures(pair, task, size),
        "num_inference_steps": 4,
        "guidance_scale": 7.5,
        **strength_option(strength),
    }
    _, theirs = reference(pair, task, seeds=[4], prompt=PROMPT, **options)
    (picture,) = pair.pipeline.prepare(make_request(prompt=PROMPT, **options), 4)
    (trajectory,) = picture.trajectories
    start = trajectory.latents * trajectory.weights[0, 0]
    ours = start if trajectory.extra is None else np.concatenate([start, trajectory.extra])
    assert theirs[0].shape == ours.shape
    for name, place in _channels(pair).items():
        error = float(np.abs(ours[place] - theirs[0][place]).max() / np.abs(theirs[0][place]).max())
        table.add(
            "Denoiser inputs",
            f"{variant}{'' if strength is None else f', strength {strength:g}'}: {name}",
            f"{error:.1e} of max",
            "1e-4",
        )
        assert error <= 1e-4, name


@pytest.mark.parametrize("size", [(64, 128), (192, 128)])
@pytest.mark.parametrize(("variant", "task"), TASKS)
def test_sizes(request: Any, record: Any, variant: str, task: TaskName, size: tuple[int, int]) -> None:
    found = _difference_at_size(request.getfixturevalue(variant), task, size)
    record("Sizes", f"{variant}, {task}, {size[0]}x{size[1]}", *found)


def _difference_at_size(pair: Any, task: TaskName, size: tuple[int, int]) -> tuple[float, float]:
    options: dict[str, Any] = {**pictures(pair, task, size), "num_inference_steps": 4, "guidance_scale": 5.0}
    if task != "upscaling":
        options["strength"] = 0.75
    expected, _ = reference(pair, task, seeds=[5], prompt=PROMPT, **options)
    ours = pair.pipeline(PROMPT, seed=5, output_type="np", **options).images
    assert ours.shape == (1, size[1], size[0], 3)
    return difference(ours, expected)


@pytest.mark.parametrize("size", MULTIPLES_OF_8)
@pytest.mark.parametrize(
    ("variant", "task"),
    [
        *(("base", "image-to-image"), ("inpainting", "inpainting")),
        *(("depth", "depth-to-image"), ("upscaler", "upscaling")),
    ],
)
def test_sizes_in_multiples_of_8(
    request: Any,
    record: Any,
    monkeypatch: pytest.MonkeyPatch,
    variant: str,
    task: TaskName,
    size: tuple[int, int],
) -> None:
    pair = request.getfixturevalue(variant)
    if task == "upscaling":
        # By default diffusers resizes these images to multiples of 4.
        processor = VaeImageProcessor(vae_scale_factor=4, do_resize=False)
        monkeypatch.setattr(pair.reference, "image_processor", processor)
    found = _difference_at_size(pair, task, size)
    record("Sizes in multiples of 8", f"{variant}, {task}, {size[0]}x{size[1]}", *found)


@pytest.mark.parametrize(("variant", "task"), TASKS)
def test_batches(request: Any, record: Any, variant: str, task: TaskName) -> None:
    """Two images of one prompt, each with its own noise."""
    pair = request.getfixturevalue(variant)
    options = {**pictures(pair, task), "num_inference_steps": 3, "guidance_scale": 5.0}
    if task != "upscaling":
        options["strength"] = 0.75
    ours = pair.pipeline(PROMPT, seed=7, output_type="np", num_images_per_prompt=2, **options)
    assert ours.seeds == [7, 8]
    for seed, image in zip(ours.seeds, ours.images, strict=True):
        expected, _ = reference(pair, task, seeds=[seed], prompt=PROMPT, **options)
        record("Batches", f"{variant}, {task}, 2 images, seed {seed}", *difference(image[None], expected))


def test_given_depth(depth: Any, record: Any) -> None:
    samples = pictures(depth, "depth-to-image")
    ramp = np.linspace(0, 9, 40 * 50, dtype=np.float32).reshape(40, 50) ** 2
    options: dict[str, Any] = {"strength": 0.9, "num_inference_steps": 4, "image": samples["image"]}
    expected, _ = reference(
        depth, "depth-to-image", seeds=[5], prompt=PROMPT, depth_map=torch.from_numpy(ramp)[None], **options
    )
    ours = depth.pipeline(PROMPT, seed=5, output_type="np", depth_map=ramp, **options).images
    record("Pictures: depth-to-image", "depth, map of 50x40 from the caller", *difference(ours, expected))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_soft_masks(inpainting: Any, record: Any, mode: str) -> None:
    samples = pictures(inpainting, "inpainting", (128, 64))
    y, x = np.mgrid[0:64, 0:128]
    soft = ((np.sin(x / 9) * np.cos(y / 7) + 1) * 127.5).round().astype(np.uint8)
    options: dict[str, Any] = {
        "image": samples["image"],
        "mask_image": Image.fromarray(soft).convert(mode),
        "num_inference_steps": 4,
    }
    expected, _ = reference(inpainting, "inpainting", seeds=[5], prompt=PROMPT, **options)
    ours = inpainting.pipeline(PROMPT, seed=5, output_type="np", **options).images
    record("Pictures: inpainting", f"inpainting, soft mask, {mode}", *difference(ours, expected))


@pytest.mark.parametrize("level", [0, 20, 350])
def test_noise_levels(upscaler: Any, record: Any, level: int) -> None:
    options = {**pictures(upscaler, "upscaling"), "num_inference_steps": 4, "noise_level": level}
    expected, _ = reference(upscaler, "upscaling", seeds=[5], prompt=PROMPT, **options)
    ours = upscaler.pipeline(PROMPT, seed=5, output_type="np", **options).images
    record("Pictures: upscaling", f"upscaler, noise level {level}", *difference(ours, expected))


def test_the_call_of_the_published_example(depth: Any, record: Any) -> None:
    """diffusers' example for the depth model, apart from the import and the loading of the pipeline."""
    pipe, init_image = depth.pipeline, pictures(depth, "depth-to-image")["image"]
    image = pipe(
        prompt="two tigers",
        image=init_image,
        negative_prompt="bad, deformed, ugly, bad anotomy",
        strength=0.7,
    ).images[0]
    assert image.size == init_image.size
    assert image.mode == "RGB"
