"""The request model: every option of an image, validated once for Python, the command line and servers."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, Self, Unpack, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from sd2rt.engines.bundle.sampler_config import GridName
from sd2rt.engines.bundle.sizes import check_sides
from sd2rt.engines.errors import RequestError
from sd2rt.engines.printable import is_text, printable, repr_of
from sd2rt.runtime.images.preparation import ResizeMode
from sd2rt.runtime.images.read import MAX_PIXELS
from sd2rt.runtime.prompts.syntax import NAMED_NETWORK, PromptSyntax
from sd2rt.runtime.request.fields import Images, OutputType, RequestFields
from sd2rt.runtime.request.presets import PresetName
from sd2rt.runtime.rng.select import check_rng

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

_MAX_SHOWN = 80
_SMALLEST_WHOLE, _LARGEST_WHOLE = -(2**63), 2**64 - 1
_MAX_SCALE = 1e6


def _array(value: Any) -> Any:
    if value is None:
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise ValueError("use an array of numbers")
    return array


def _text(value: Any) -> Any:
    # Python decodes invalid UTF-8 in command-line arguments to lone surrogates, which cannot be tokenized.
    if isinstance(value, str) and not is_text(value):
        raise ValueError("the text is not valid UTF-8, type it again")
    return value


def _whole(value: Any) -> Any:
    """Convert integers of any library. Strings and booleans are left for pydantic to reject."""
    if value is None or isinstance(value, bool | str | bytes):
        return value
    try:
        number = operator.index(value)
    except TypeError:
        return value
    if not _SMALLEST_WHOLE <= number <= _LARGEST_WHOLE:
        # PyTorch's range of seeds; no other field takes more.
        raise ValueError("use a number from -2**63 to 2**64 - 1")
    return number


def _limit(info: ValidationInfo) -> int:
    # Missing if max_image_pixels itself was invalid; that error is then the first one reported.
    return int(info.data.get("max_image_pixels", MAX_PIXELS))


# Imported on use: requests without images should not load Pillow.
def _image(value: Any, info: ValidationInfo) -> Any:
    if value is None:
        return None
    from sd2rt.runtime.images.init_image import load_image

    return load_image(value, max_pixels=_limit(info))


def _mask(value: Any, info: ValidationInfo) -> Any:
    if value is None:
        return None
    from sd2rt.runtime.images.mask import load_mask

    return load_mask(value, max_pixels=_limit(info))


def _depth(value: Any, info: ValidationInfo) -> Any:
    if value is None:
        return None
    from sd2rt.runtime.images.depth_map import load_depth

    return load_depth(value, max_pixels=_limit(info))


def _number(value: Any) -> Any:
    """Convert real numbers of any library, rejecting strings and booleans."""
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise ValueError("use a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("use a number within the range of a float") from None
    except (TypeError, ValueError):
        # An array of several, or an object whose conversion fails.
        raise ValueError("use a number") from None


def _scales(value: Any) -> Any:
    """Validate one guidance scale or a sequence of them; a sequence of one becomes a single number."""
    if isinstance(value, str | bytes) or not hasattr(value, "__len__") or np.ndim(value) == 0:
        scale = _number(value)
        if isinstance(scale, float | int):
            _check_scale(scale)
        return scale
    scales = tuple(_number(scale) for scale in value)
    if not scales or not all(scale is not None and math.isfinite(scale) for scale in scales):
        raise ValueError("use one or more finite numbers")
    for scale in scales:
        _check_scale(scale)
    return scales[0] if len(scales) == 1 else scales


def _check_scale(scale: float) -> None:
    if not math.isfinite(scale):
        raise ValueError("use a finite number")
    if abs(scale) > _MAX_SCALE:
        raise ValueError(f"use numbers from {-_MAX_SCALE:g} to {_MAX_SCALE:g}")


def _interval(value: Any) -> Any:
    """Validate two noise levels. An upper level of None means no limit, since JSON has no infinity."""
    if value is None:
        return None
    if isinstance(value, str | bytes) or np.shape(value) != (2,):
        raise ValueError("use two noise levels, the lower one first")
    low, high = (_number(level) for level in value)
    if high is None:
        high = math.inf
    if low is None or not 0 <= low < high:
        raise ValueError("use two noise levels of at least 0, the lower one first")
    return low, high


Whole = Annotated[int, BeforeValidator(_whole), Strict()]
Number = Annotated[float, BeforeValidator(_number)]
Scales = Annotated[float | tuple[float, ...], BeforeValidator(_scales)]
Interval = Annotated[tuple[float, float], BeforeValidator(_interval)]
CheckedArray = Annotated[NDArray[Any], BeforeValidator(_array)]
Text = Annotated[str, BeforeValidator(_text)]
# The sampler checks which of its options exist, and their values.
Options = dict[str, bool | int | float | str | list[int] | tuple[int, ...] | None]
Rng = Annotated[str, AfterValidator(check_rng)]
# PIL images after validation. Any: naming the type would import Pillow.
Image = Annotated[Any, BeforeValidator(_image)]
Mask = Annotated[Any, BeforeValidator(_mask)]
Depth = Annotated[Any, BeforeValidator(_depth)]


class Request(BaseModel, Generic[Images]):
    """One prompt and the settings of its images. Names and meanings follow diffusers unless noted.

    If ``num_inference_steps``, ``guidance_scale``, ``strength`` or ``noise_level`` is None, the bundle's default
    for the task is used. ``preset`` names settings that override these defaults: see
    :mod:`sd2rt.runtime.request.presets`.

    Noise: ``seed`` draws the noise of ``torch.Generator("cpu").manual_seed(seed)``, and image i of the request
    uses ``seed + i``. ``rng`` ``cuda`` (or ``cuda:N``, ``cuda:NxT``; see
    :func:`~sd2rt.runtime.rng.select.make_generator`) reproduces torch's GPU generator instead.
    ``variation_strength``, 0 to 1, interpolates the initial noise towards that of ``variation_seed``; above 0,
    image i uses ``seed`` and ``variation_seed + i``. ``latents`` [n, C, h, w] is the initial noise before
    scaling by the sampler.

    Sampling: ``sampler``, ``schedule`` (a timestep spacing or a rule for noise levels) and ``sampler_options``
    (see :data:`~sd2rt.engines.bundle.sampler_config.SAMPLER_OPTIONS`) replace a diffusers scheduler object.
    ``grid`` is ``diffusers``, or ``a1111``: then noise levels and timesteps are those of AUTOMATIC1111, ``schedule``
    is one of its schedule types (:data:`~sd2rt.engines.bundle.sampler_config.A1111Schedule`; None is its
    ``automatic``), and an image is encoded without drawing noise. ``rescale_betas_zero_snr`` makes the last timestep
    pure noise. None uses the checkpoint's setting.

    Guidance: several values of ``guidance_scale`` are spread evenly over the denoiser calls and interpolated
    linearly. ``guidance_interval`` (low, high) applies guidance only to calls with low < noise level <= high,
    where a noise level is a noise-to-signal ratio (k-diffusion's sigma).

    Prompts: ``prompt_syntax`` is ``plain``, as in diffusers, or ``a1111``, as in AUTOMATIC1111: weights,
    ``AND``, ``BREAK``, edits and any length (see :mod:`sd2rt.runtime.prompts.schedule`). ``clip_skip`` is the
    number of final text encoder layers to skip. With plain syntax it does not affect the negative prompt, as in
    diffusers.

    Images: ``image``, ``mask_image`` and ``depth_map`` are a path, ``-`` for standard input, a PIL image or an
    array (see :mod:`sd2rt.runtime.images.init_image`). They are loaded when the request is created; images of
    more than ``max_image_pixels`` are rejected before decoding. White areas of a mask are repainted. ``paste``
    restores the image's original pixels where the mask is black; the transition into the repainted area is
    blurred by ``paste_blur`` pixels. An image of another aspect ratio than the result is stretched;
    ``resize_mode`` ``crop`` cuts off what exceeds it, ``fill`` repeats the image's edges, as in AUTOMATIC1111.
    ``only_masked`` paints the masked area alone, with ``mask_padding`` pixels of the image around it, at the size of
    the request (by default the bundle's), and pastes it into the whole image, which keeps its size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    prompt: Text | None = None
    negative_prompt: Text | None = None
    prompt_syntax: PromptSyntax = "plain"
    clip_skip: Whole | None = Field(default=None, ge=0)
    max_image_pixels: Whole = Field(default=MAX_PIXELS, ge=1)
    image: Image = None
    mask_image: Mask = None
    depth_map: Depth = None
    strength: Number | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    noise_level: Whole | None = Field(default=None, ge=0)
    paste: bool = False
    paste_blur: Number = Field(default=4.0, ge=0, le=256, allow_inf_nan=False)
    only_masked: bool = False
    mask_padding: Whole = Field(default=32, ge=0, le=4096)
    resize_mode: ResizeMode = "stretch"
    num_inference_steps: Whole | None = Field(default=None, ge=1)
    guidance_scale: Scales | None = None
    guidance_rescale: Number = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    guidance_interval: Interval | None = None
    preset: PresetName | None = None
    height: Whole | None = None
    width: Whole | None = None
    num_images_per_prompt: Whole = Field(default=1, ge=1)
    seed: Whole | None = None
    rng: Rng = "cpu"
    variation_seed: Whole | None = None
    variation_strength: Number = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    latents: CheckedArray | None = None
    prompt_embeds: CheckedArray | None = None
    negative_prompt_embeds: CheckedArray | None = None
    sampler: str | None = None
    schedule: str | None = None
    grid: GridName = "diffusers"
    sampler_options: Options | None = None
    rescale_betas_zero_snr: bool | None = None
    eta: Number = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    output_type: OutputType = "pil"

    if TYPE_CHECKING:
        # Arguments accept more types than the validated fields hold, and output_type determines the type of the
        # images.
        @overload
        def __init__(
            self: Request[list[PILImage]],
            *,
            output_type: Literal["pil"] = "pil",
            **fields: Unpack[RequestFields],
        ) -> None: ...
        @overload
        def __init__(
            self: Request[NDArray[np.float32]],
            *,
            output_type: Literal["np", "latent"],
            **fields: Unpack[RequestFields],
        ) -> None: ...
        @overload
        def __init__(
            self: Request[Any], *, output_type: OutputType, **fields: Unpack[RequestFields]
        ) -> None: ...
        def __init__(self, **fields: Any) -> None: ...

    @property
    def varied(self) -> bool:
        """True if the initial noise is interpolated towards that of ``variation_seed``."""
        return self.variation_strength > 0

    def seeds_of(self, seed: int, index: int) -> tuple[int, int | None]:
        """Return the seed and the variation seed (or None) of image ``index``; ``seed`` is image 0's.

        With a variation only the variation seed counts up, so that all images vary the same one, as in
        AUTOMATIC1111.
        """
        if self.variation_seed is None or not self.varied:
            return seed + index, None
        return seed, self.variation_seed + index

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.prompt is None) == (self.prompt_embeds is None):
            if self.prompt is None:
                raise ValueError("there is no prompt: set prompt or prompt_embeds")
            raise ValueError("prompt and prompt_embeds are both set: use only one of them")
        if self.negative_prompt is not None and self.negative_prompt_embeds is not None:
            raise ValueError("negative_prompt and negative_prompt_embeds are both set: use only one of them")
        if self.prompt_syntax == "a1111":
            for text in (self.prompt, self.negative_prompt):
                tag = NAMED_NETWORK.search(text or "")
                if tag is not None:
                    raise ValueError(
                        f"the prompt contains {tag[0][:_MAX_SHOWN]}, but prompts cannot load files: remove it, "
                        "and load the LoRA with --lora FILE:SCALE or load_lora(), or name its folder with --lora-dir"
                    )
        if self.varied and self.variation_seed is None:
            raise ValueError(
                "variation_strength is set but variation_seed is not: set the seed to vary towards"
            )
        if self.varied and self.latents is not None:
            raise ValueError(
                "latents and variation_strength are both set, but only noise from a seed can be varied: use one"
            )
        if self.timesteps is not None and self.sigmas is not None:
            raise ValueError("timesteps and sigmas are both set: use only one of them")
        for name in ("timesteps", "sigmas"):
            if self.grid == "a1111" and getattr(self, name) is not None:
                raise ValueError(f"{name} cannot be combined with the grid a1111: leave one of them out")
        check_mask(self.image, self.mask_image)
        for name in ("paste", "only_masked"):
            if getattr(self, name) and self.output_type == "latent":
                raise ValueError(
                    f"{name} needs pixels, but output_type is latent: turn {name} off, or use output_type pil or np"
                )
        if self.only_masked and self.resize_mode != "stretch":
            raise ValueError("only_masked keeps the aspect ratio by itself: leave resize_mode out")
        check_sides(self.width, self.height)
        return self


def check_mask(image: Any, mask: Any) -> None:
    """Check that a mask has the size of its image.

    Raises:
        RequestError: the sizes differ.
    """
    if image is not None and mask is not None and mask.size != image.size:
        mask_size, image_size = ("x".join(map(str, each.size)) for each in (mask, image))
        raise RequestError(
            f"the mask is {mask_size} pixels, but its image is {image_size}: make them the same size"
        )


def make_request(**fields: Any) -> Request[Any]:
    """Create a request from keyword arguments.

    Raises:
        RequestError: an argument is invalid; the message describes the first problem in one line.
    """
    if "generator" in fields:
        raise RequestError(
            "generator is not supported: use seed=N, which draws what torch.Generator('cpu').manual_seed(N) draws"
        )
    for name in ("guidance_scale", "guidance_rescale", "eta", "strength", "variation_strength"):
        value = fields.get(name)
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestError(f"{name} is {value}: use a finite number")
    try:
        return Request.model_validate(fields)
    except ValidationError as error:
        raise RequestError(_one_line(error)) from None


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(item) for item in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown request option {where}: choose from {', '.join(Request.model_fields)}"
    reason = first["msg"].removeprefix("Value error, ")
    if not where:
        return reason
    value = printable(" ".join(repr_of(first["input"]).split()))
    value = value if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]}…"
    return f"{where} is {value}: {reason[0].lower()}{reason[1:]}"
