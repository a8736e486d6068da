"""The kinds of Stable Diffusion 2 models, as one table: what each can do, what it is shown, what it is made of.

A manifest says all of this of its own bundle; the table is what a build writes there, and how a refusal knows
which kind of bundle can do what was asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sd2rt.engines.bundle.sampler_config import PredictionType

ModelKind = Literal["base", "v", "turbo", "inpainting", "depth", "upscaler"]
PartName = Literal[
    "text_encoder", "denoiser", "decoder", "encoder", "tiled_decoder", "tiled_encoder", "depth_estimator"
]
UNTILED: dict[PartName, PartName] = {"tiled_decoder": "decoder", "tiled_encoder": "encoder"}
"""What the parts that work on tiles are otherwise, and whose weights they have."""
TaskName = Literal["text-to-image", "image-to-image", "inpainting", "depth-to-image", "upscaling"]
ConditionName = Literal["mask", "masked_image", "depth", "low_res"]
InputName = Literal["image", "mask_image", "depth_map", "noise_level", "strength", "paste"]


class Condition(BaseModel):
    """Channels that the denoiser sees beside the latents, unscaled, at every step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ConditionName
    channels: int = Field(ge=1)


class Defaults(BaseModel):
    """What a request that does not say otherwise gets from a task; diffusers' own defaults, where it has some."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    num_inference_steps: int = Field(ge=1)
    guidance_scale: float
    strength: float | None = Field(gt=0, le=1)
    """How far from its image a task starts; None where it starts from noise alone."""
    noise_level: int | None = Field(ge=0)
    """How noisy the low-resolution image is made; None where there is none."""


@dataclass(frozen=True, slots=True)
class Task:
    """Something that can be asked for: the inputs that it takes beside the prompt."""

    name: TaskName
    required: tuple[InputName, ...] = ()
    optional: tuple[InputName, ...] = ()
    conditions: tuple[ConditionName, ...] = ()
    """What the denoiser of a bundle that offers it is shown."""
    noise_at_full_strength: bool = False
    """Strength 1 starts from noise alone, rather than from an image with the most noise there is."""


TASKS: dict[TaskName, Task] = {
    task.name: task
    for task in (
        Task("text-to-image"),
        Task("image-to-image", required=("image",), optional=("strength",)),
        Task(
            "inpainting",
            required=("image", "mask_image"),
            optional=("strength", "paste"),
            conditions=("mask", "masked_image"),
            noise_at_full_strength=True,
        ),
        Task(
            "depth-to-image",
            required=("image",),
            optional=("depth_map", "strength"),
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
    """One row of the table."""

    name: ModelKind
    tasks: dict[TaskName, Defaults]
    prediction: PredictionType | None = None
    """What the UNet predicts; None where either may be."""
    conditions: tuple[Condition, ...] = ()
    class_label: bool = False
    """The UNet is told how noisy the image that it is shown was made."""
    vae_factor: int = 8
    """Pixels of the result per latent, along one side."""
    parts: tuple[PartName, ...] = _PARTS
    fp32_parts: tuple[PartName, ...] = ()
    """Parts that stay float32 where fp16 is asked for."""

    @property
    def in_channels(self) -> int:
        """Of the UNet; the latents have four."""
        return 4 + sum(condition.channels for condition in self.conditions)


KINDS: dict[ModelKind, KindSpec] = {
    kind.name: kind
    for kind in (
        KindSpec("base", {"text-to-image": _TEXT, "image-to-image": _IMAGE}, prediction="epsilon"),
        KindSpec("v", {"text-to-image": _TEXT, "image-to-image": _IMAGE}, prediction="v_prediction"),
        KindSpec(
            "turbo",
            # Distilled for one step without guidance: with an image, half of two.
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
            # Made for float32 with its convolutions' weights standardised, and run once an image.
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
            # Nothing is encoded, and the published decoder overflows in fp16.
            parts=("text_encoder", "denoiser", "decoder", "tiled_decoder"),
            fp32_parts=("decoder", "tiled_decoder"),
        ),
    )
}


def kinds_for(task: TaskName) -> tuple[ModelKind, ...]:
    """The kinds of bundle that offer a task."""
    return tuple(name for name, kind in KINDS.items() if task in kind.tasks)
