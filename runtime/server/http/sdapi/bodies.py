"""Fields of AUTOMATIC1111's requests, with their types and ranges. None is a field's default; others are ignored."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict

from sd2rt.runtime.images.preparation import LARGEST_BLUR
from sd2rt.runtime.server.generation import MAX_PROMPT
from sd2rt.runtime.server.http.api.image_fields import FromFloat, Ignored, Number, Text, Truth

_MAX_SCALE = 1e6
MAX_IMAGES = 10
Whole = Annotated[int, Strict(), FromFloat]
Name = Annotated[Text, Field(max_length=500)]
IMAGE_FORMAT = "base64-image"
"""Of strings, in the API's document."""
Image = Annotated[
    str,
    Field(
        description="A PNG, JPEG or WebP in base64, with or without data:image/...;base64, before it.",
        json_schema_extra={"format": IMAGE_FORMAT},
    ),
]


class GenerationBody(BaseModel):
    """Fields that txt2img and img2img have in common."""

    model_config = ConfigDict(extra="ignore")

    prompt: Annotated[Text, Field(max_length=MAX_PROMPT)] | None = None
    negative_prompt: Annotated[Text, Field(max_length=MAX_PROMPT)] | None = None
    styles: list[Name] | None = Field(default=None, max_length=100)
    seed: Annotated[int, Strict(), Field(ge=-1, le=2**63 - 1), FromFloat] | None = Field(
        default=None, description="Of the first image; image i has seed + i. -1 draws one."
    )
    subseed: Annotated[int, Strict(), Field(ge=-1, le=2**63 - 1), FromFloat] | None = None
    subseed_strength: Annotated[Number, Field(ge=0, le=1)] | None = None
    seed_resize_from_h: Whole | None = None
    seed_resize_from_w: Whole | None = None
    sampler_name: Name | None = None
    sampler_index: Name | None = Field(default=None, description="The same, if sampler_name is not given.")
    scheduler: Name | None = None
    batch_size: Annotated[int, Strict(), Field(ge=1, le=MAX_IMAGES), FromFloat] | None = None
    n_iter: Annotated[int, Strict(), Field(ge=1, le=MAX_IMAGES), FromFloat] | None = None
    steps: Annotated[int, Strict(), Field(ge=1), FromFloat] | None = None
    cfg_scale: Annotated[Number, Field(ge=-_MAX_SCALE, le=_MAX_SCALE)] | None = None
    width: Annotated[int, Strict(), Field(ge=1), FromFloat] | None = None
    height: Annotated[int, Strict(), Field(ge=1), FromFloat] | None = None
    restore_faces: Truth | None = None
    tiling: Truth | None = None
    eta: Annotated[Number, Field(ge=0, le=1)] | None = None
    s_churn: Annotated[Number, Field(ge=0, le=100)] | None = None
    s_tmax: Annotated[Number, Field(ge=0, le=999)] | None = None
    s_tmin: Annotated[Number, Field(ge=0, le=10)] | None = None
    s_noise: Annotated[Number, Field(ge=0, le=1.1)] | None = None
    s_min_uncond: Number | None = None
    denoising_strength: Annotated[Number, Field(ge=0, le=1)] | None = None
    clip_skip: Annotated[int, Strict(), Field(ge=0, le=100), FromFloat] | None = Field(
        default=None, description="SD.Next's; 1 ends at the last layer. CLIP_stop_at_last_layers comes first."
    )
    override_settings: dict[str, Any] | None = None
    override_settings_restore_afterwards: Ignored = None
    refiner_checkpoint: Name | None = None
    refiner_switch_at: Ignored = None
    disable_extra_networks: Truth | None = None
    script_name: Name | None = None
    script_args: Ignored = None
    alwayson_scripts: dict[str, Any] | None = None
    controlnet_units: list[Any] | None = None
    infotext: Name | None = None
    comments: Ignored = None
    send_images: Truth | None = None
    save_images: Ignored = None
    do_not_save_samples: Ignored = None
    do_not_save_grid: Ignored = None
    force_task_id: Annotated[Text, Field(max_length=200)] | None = None


class Txt2ImgBody(GenerationBody):
    """Generate images from a prompt. Fields of the second pass have no effect without it."""

    model_config = ConfigDict(title="Txt2ImgRequest")

    enable_hr: Truth | None = None
    hr_scale: Ignored = None
    hr_upscaler: Ignored = None
    hr_second_pass_steps: Ignored = None
    hr_resize_x: Ignored = None
    hr_resize_y: Ignored = None
    hr_checkpoint_name: Ignored = None
    hr_sampler_name: Ignored = None
    hr_scheduler: Ignored = None
    hr_prompt: Ignored = None
    hr_negative_prompt: Ignored = None
    firstphase_width: Ignored = None
    firstphase_height: Ignored = None


class Img2ImgBody(GenerationBody):
    """Generate images from an image, with a mask inside of it."""

    model_config = ConfigDict(title="Img2ImgRequest")

    init_images: list[Image] | None = Field(default=None, max_length=MAX_IMAGES)
    mask: Image | None = Field(default=None, description="White is repainted.")
    resize_mode: Annotated[int, Strict(), Field(ge=0, le=3), FromFloat] | None = Field(
        default=None, description="0 stretches, 1 crops, 2 fills."
    )
    mask_blur: Annotated[Number, Field(ge=0, le=LARGEST_BLUR)] | None = None
    mask_blur_x: Annotated[Number, Field(ge=0, le=LARGEST_BLUR)] | None = None
    mask_blur_y: Annotated[Number, Field(ge=0, le=LARGEST_BLUR)] | None = None
    mask_round: Truth | None = None
    inpainting_fill: Annotated[int, Strict(), Field(ge=0, le=3), FromFloat] | None = Field(
        default=None, description="0 starts from the colours around the mask, 1 from those under it."
    )
    inpaint_full_res: Truth | None = Field(default=None, description="Paint the masked area alone.")
    inpaint_full_res_padding: Annotated[int, Strict(), Field(ge=0, le=4096), FromFloat] | None = None
    inpainting_mask_invert: Annotated[int, Strict(), Field(ge=0, le=1), FromFloat] | None = None
    initial_noise_multiplier: Number | None = None
    image_cfg_scale: Ignored = None
    latent_mask: Image | None = None
    include_init_images: Truth | None = None


class UpscalingBody(BaseModel):
    """Fields that both requests for larger images have."""

    model_config = ConfigDict(extra="ignore")

    resize_mode: Annotated[int, Strict(), Field(ge=0, le=1), FromFloat] | None = Field(
        default=None,
        description="0 enlarges by upscaling_resize, 1 to upscaling_resize_w x upscaling_resize_h.",
    )
    show_extras_results: Ignored = None
    gfpgan_visibility: Annotated[Number, Field(ge=0, le=1)] | None = None
    codeformer_visibility: Annotated[Number, Field(ge=0, le=1)] | None = None
    codeformer_weight: Ignored = None
    upscaling_resize: Annotated[Number, Field(gt=0, le=4)] | None = None
    upscaling_resize_w: Annotated[int, Strict(), Field(ge=1, le=16384), FromFloat] | None = None
    upscaling_resize_h: Annotated[int, Strict(), Field(ge=1, le=16384), FromFloat] | None = None
    upscaling_crop: Truth | None = None
    upscaler_1: Name | None = None
    upscaler_2: Name | None = None
    extras_upscaler_2_visibility: Annotated[Number, Field(ge=0, le=1)] | None = None
    upscale_first: Ignored = None


class SingleUpscalingBody(UpscalingBody):
    """Enlarge an image."""

    model_config = ConfigDict(title="UpscalingRequest")

    image: Image


class NamedImage(BaseModel):
    """One of several images."""

    model_config = ConfigDict(extra="ignore")

    data: Image
    name: Ignored = None


class BatchUpscalingBody(UpscalingBody):
    """Enlarge several images."""

    model_config = ConfigDict(title="BatchUpscalingRequest")

    imageList: list[NamedImage] = Field(min_length=1, max_length=MAX_IMAGES)  # noqa: N815


class PngInfoBody(BaseModel):
    """Read the settings that a PNG has."""

    model_config = ConfigDict(extra="ignore", title="PngInfoRequest")

    image: Image
