"""Table of the Stable Diffusion 2 model kinds: the tasks, conditions and parts of each.

A build copies a kind's row to the bundle's manifest. Error messages use the table to name the kinds of bundle that
support a task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sd2rt.engines.bundle.sampler_config import MAX_TIMESTEPS, PredictionType

ModelKind = Literal["base", "v", "turbo", "inpainting", "depth", "upscaler"]
PartName = Literal[
    "text_encoder", "denoiser", "decoder", "encoder", "tiled_decoder", "tiled_encoder", "depth_estimator"
]
EAGER_PARTS: tuple[PartName, ...] = ("text_encoder", "denoiser", "decoder")
"""Parts that every image needs, loaded at once; the others are loaded on first use."""

UNTILED: dict[PartName, PartName] = {"tiled_decoder": "decoder", "tiled_encoder": "encoder"}
"""The untiled counterpart of each tiled part; both use the same weights."""
TaskName = Literal["text-to-image", "image-to-image", "inpainting", "depth-to-image", "upscaling"]
ConditionName = Literal["mask", "masked_image", "depth", "low_res"]
InputName = Literal[
    "image", "mask_image", "depth_map", "noise_level", "strength", "paste", "resize_mode", "only_masked"
]


MAX_SCALE = 1e6
"""Largest guidance scale, and its negative the least."""


class Condition(BaseModel):
    """Channels appended, unscaled, to the denoiser's latent input at every step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ConditionName
    channels: int = Field(ge=1, le=1024)


class Defaults(BaseModel):
    """Defaults of a task's requests: those of diffusers, where it has them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    num_inference_steps: int = Field(ge=1, le=MAX_TIMESTEPS)
    guidance_scale: float = Field(ge=-MAX_SCALE, le=MAX_SCALE)
    strength: float | None = Field(gt=0, le=1)
    """Amount of change to the input image, above 0, up to 1; None if the task starts from noise."""
    noise_level: int | None = Field(ge=0, le=MAX_TIMESTEPS)
    """Noise level of the low-resolution image; None if the task has none."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task, with the inputs that it takes besides the prompt."""

    name: TaskName
    required: tuple[InputName, ...] = ()
    optional: tuple[InputName, ...] = ()
    conditions: tuple[ConditionName, ...] = ()
    """Conditions that the denoiser of a bundle made for the task takes."""
    noise_at_full_strength: bool = False
    """Strength 1 starts from pure noise, rather than from the image at the highest noise level."""


TASKS: dict[TaskName, Task] = {
    task.name: task
    for task in (
        Task("text-to-image"),
        Task("image-to-image", required=("image",), optional=("strength", "resize_mode")),
        Task(
            "inpainting",
            required=("image", "mask_image"),
            optional=("strength", "paste", "resize_mode", "only_masked"),
            conditions=("mask", "masked_image"),
            noise_at_full_strength=True,
        ),
        Task(
            "depth-to-image",
            required=("image",),
            optional=("depth_map", "strength", "resize_mode"),
            conditions=("depth",),
        ),
        Task("upscaling", required=("image",), optional=("noise_level",), conditions=("low_res",)),
    )
}

_TEXT = Defaults(num_inference_steps=50, guidance_scale=7.5, strength=None, noise_level=None)
_IMAGE = _TEXT.model_copy(update={"strength": 0.8})
_PARTS: tuple[PartName, ...] = (
    "text_encoder",
    "denoiser",
    "decoder",
    "encoder",
    "tiled_decoder",
    "tiled_encoder",
)


@dataclass(frozen=True, slots=True)
class KindSpec:
    """One row of the table: a kind of model."""

    name: ModelKind
    tasks: dict[TaskName, Defaults]
    prediction: PredictionType | None = None
    """Prediction type of the UNet; None if it may be epsilon or v."""
    conditions: tuple[Condition, ...] = ()
    class_label: bool = False
    """The UNet takes the noise level of the low-resolution image as its class label."""
    vae_factor: int = 8
    """Output pixels per latent along one side."""
    parts: tuple[PartName, ...] = _PARTS
    fp32_parts: tuple[PartName, ...] = ()
    """Parts kept in float32 when the bundle is built in fp16."""

    @property
    def in_channels(self) -> int:
        """Input channels of the UNet: four of latents, plus the conditions."""
        return 4 + sum(condition.channels for condition in self.conditions)


KINDS: dict[ModelKind, KindSpec] = {
    kind.name: kind
    for kind in (
        KindSpec("base", {"text-to-image": _TEXT, "image-to-image": _IMAGE}, prediction="epsilon"),
        KindSpec("v", {"text-to-image": _TEXT, "image-to-image": _IMAGE}, prediction="v_prediction"),
        KindSpec(
            "turbo",
            # Distilled for one step without guidance: image-to-image runs half of two steps.
            {
                "text-to-image": _TEXT.model_copy(update={"num_inference_steps": 1, "guidance_scale": 0.0}),
                "image-to-image": _TEXT.model_copy(
                    update={"num_inference_steps": 2, "guidance_scale": 0.0, "strength": 0.5}
                ),
            },
            prediction="epsilon",
        ),
        KindSpec(
            "inpainting",
            {"inpainting": _TEXT.model_copy(update={"strength": 1.0})},
            conditions=(Condition(name="mask", channels=1), Condition(name="masked_image", channels=4)),
        ),
        KindSpec(
            "depth",
            {"depth-to-image": _IMAGE},
            conditions=(Condition(name="depth", channels=1),),
            parts=(*_PARTS, "depth_estimator"),
            # Standardises its convolution weights in float32, and runs only once per image.
            fp32_parts=("depth_estimator",),
        ),
        KindSpec(
            "upscaler",
            {
                "upscaling": Defaults(
                    num_inference_steps=75, guidance_scale=9.0, strength=None, noise_level=20
                )
            },
            conditions=(Condition(name="low_res", channels=3),),
            class_label=True,
            vae_factor=4,
            # It needs no encoder, and the published decoder overflows in fp16.
            parts=("text_encoder", "denoiser", "decoder", "tiled_decoder"),
            fp32_parts=("decoder", "tiled_decoder"),
        ),
    )
}


def with_defaults(
    tasks: Mapping[TaskName, Defaults], steps: int | None = None, guidance: float | None = None
) -> dict[TaskName, Defaults]:
    """Set the steps and the guidance scale of all tasks; None leaves them as they are.

    A task that starts from an image takes enough steps for its strength to leave one.
    """
    changed: dict[TaskName, Defaults] = {}
    for name, defaults in tasks.items():
        values = defaults.model_dump()
        if steps is not None:
            least = 1 if defaults.strength is None else math.ceil(1 / defaults.strength)
            values["num_inference_steps"] = max(steps, least)
        if guidance is not None:
            values["guidance_scale"] = guidance
        changed[name] = Defaults.model_validate(values)
    return changed


def with_masks(tasks: Mapping[TaskName, Defaults]) -> dict[TaskName, Defaults]:
    """Add inpainting to the tasks of a bundle that has image-to-image, with diffusers' default strength.

    Its denoiser has no mask as input: the runtime keeps the rest of the image by itself.
    """
    images = tasks.get("image-to-image")
    if images is None:
        return dict(tasks)
    return {**tasks, "inpainting": images.model_copy(update={"strength": 1.0})}


def kinds_for(task: TaskName) -> tuple[ModelKind, ...]:
    """Kinds of bundle that support a task."""
    return tuple(name for name, kind in KINDS.items() if task in with_masks(kind.tasks))


DEMO_NAMES: dict[str, ModelKind] = {
    "demo": "base",
    "demo-v": "v",
    "demo-inpaint": "inpainting",
    "demo-depth": "depth",
    "demo-x4": "upscaler",
}
"""Names of the demo checkpoints, and the kind of each."""
