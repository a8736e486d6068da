"""Typed keyword arguments of requests and pipeline calls, for type checkers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from numpy.typing import NDArray

from sd2rt.engines.bundle.sampler_config import GridName
from sd2rt.runtime.images.preparation import ResizeMode
from sd2rt.runtime.prompts.syntax import PromptSyntax
from sd2rt.runtime.request.presets import PresetName

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import TypeVar

    Images = TypeVar("Images", default=list[Image])
    """Type of an output's images: PIL images for output type ``pil``, an array for the others."""
else:
    # Python 3.11 has no TypeVar with a default, and nothing reads it at run time.
    from typing import TypeVar

    Images = TypeVar("Images")

OutputType = Literal["pil", "np", "latent"]


class SharedFields(TypedDict, total=False):
    """Fields common to requests and calls, except ``output_type``, which determines the type of the images.

    :class:`~sd2rt.runtime.request.request.Request` documents their meanings and defaults.
    """

    max_image_pixels: int
    image: Any
    mask_image: Any
    depth_map: Any
    strength: float | None
    noise_level: int | None
    paste: bool
    paste_blur: float
    only_masked: bool
    mask_padding: int
    resize_mode: ResizeMode
    prompt_syntax: PromptSyntax
    clip_skip: int | None
    num_inference_steps: int | None
    guidance_scale: float | Sequence[float] | None
    guidance_rescale: float
    guidance_interval: tuple[float, float] | None
    preset: PresetName | None
    height: int | None
    width: int | None
    num_images_per_prompt: int
    seed: int | None
    rng: str
    variation_seed: int | None
    variation_strength: float
    latents: NDArray[Any] | None
    prompt_embeds: NDArray[Any] | None
    negative_prompt_embeds: NDArray[Any] | None
    sampler: str | None
    schedule: str | None
    grid: GridName
    sampler_options: Mapping[str, Any] | None
    rescale_betas_zero_snr: bool | None
    eta: float
    timesteps: Sequence[float] | None
    sigmas: Sequence[float] | None


class RequestFields(SharedFields, total=False):
    """Keyword arguments of a :class:`~sd2rt.runtime.request.request.Request`."""

    prompt: str | None
    negative_prompt: str | None


class CallOptions(SharedFields, total=False):
    """Keyword arguments of a pipeline call, in addition to its prompts."""

    negative_prompt: str | list[str] | None
