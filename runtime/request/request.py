"""What can be asked of a pipeline, by Python, by the command line, later by a server: one model, checked once."""

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

from sd2rt.engines.bundle.sizes import check_side
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.images.read import MAX_PIXELS
from sd2rt.runtime.prompts.syntax import NAMED_NETWORK, PromptSyntax
from sd2rt.runtime.request.fields import Images, OutputType, RequestFields
from sd2rt.runtime.request.presets import PresetName
from sd2rt.runtime.rng.select import check_rng

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

_LONGEST_SHOWN = 80


def _array(value: Any) -> Any:
    if value is None:
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise ValueError("give an array of numbers")
    return array


def _text(value: Any) -> Any:
    # What a terminal's other encoding leaves in an argument cannot be tokenized.
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("it is not UTF-8 text, type it again")
    return value


def _whole(value: Any) -> Any:
    """Whole numbers of any library, and neither texts nor truth values that could pass for one."""
    if value is None or isinstance(value, bool | str | bytes):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def _limit(info: ValidationInfo) -> int:
    # Not there where it was wrong itself: then that is told, and not the picture's fault.
    return int(info.data.get("max_image_pixels", MAX_PIXELS))


# Imported where a request brings a picture: one of text alone should not load Pillow.
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
    """Numbers of any library, and neither texts nor truth values that could pass for one."""
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise ValueError("give a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("give a number that a float can hold") from None


def _scales(value: Any) -> Any:
    """A guidance scale, or several in turn; a list of one is that one."""
    if isinstance(value, str | bytes) or not hasattr(value, "__len__") or np.ndim(value) == 0:
        scale = _number(value)
        if isinstance(scale, float | int) and not math.isfinite(scale):
            raise ValueError("give a finite number")
        return scale
    scales = tuple(_number(scale) for scale in value)
    if not scales or not all(scale is not None and math.isfinite(scale) for scale in scales):
        raise ValueError("give finite numbers, at least one")
    return scales[0] if len(scales) == 1 else scales


def _interval(value: Any) -> Any:
    """Two noise levels; None in the upper one's place, as JSON has no infinity, is no limit."""
    if value is None:
        return None
    if isinstance(value, str | bytes) or np.shape(value) != (2,):
        raise ValueError("give two noise levels, the lower one first")
    low, high = (_number(level) for level in value)
    if high is None:
        high = math.inf
    if low is None or not 0 <= low < high:
        raise ValueError("give two noise levels of at least 0, the lower one first")
    return low, high


Whole = Annotated[int, BeforeValidator(_whole), Strict()]
Number = Annotated[float, BeforeValidator(_number)]
Scales = Annotated[float | tuple[float, ...], BeforeValidator(_scales)]
Interval = Annotated[tuple[float, float], BeforeValidator(_interval)]
CheckedArray = Annotated[NDArray[Any], BeforeValidator(_array)]
Text = Annotated[str, BeforeValidator(_text)]
# What a sampler takes is checked with the sampler.
Options = dict[str, bool | int | float | str | list[int] | tuple[int, ...] | None]
Rng = Annotated[str, AfterValidator(check_rng)]
# A PIL image once checked; pydantic need not know more of it.
Image = Annotated[Any, BeforeValidator(_image)]
Mask = Annotated[Any, BeforeValidator(_mask)]
Depth = Annotated[Any, BeforeValidator(_depth)]


class Request(BaseModel, Generic[Images]):
    """One prompt and how its images are to be made; names and meanings are diffusers', unless said otherwise.

    ``num_inference_steps``, ``guidance_scale``, ``strength`` and ``noise_level`` of None are the bundle's own
    for the task. ``seed`` is what ``torch.Generator("cpu").manual_seed(seed)`` would be given; image i of the
    request takes ``seed + i``. With ``rng`` ``cuda`` (or ``cuda:N``, ``cuda:NxT``; see
    :func:`~sd2rt.runtime.rng.select.make_generator`) it is torch's generator of a GPU. ``variation_strength`` above 0
    moves the initial noise towards ``variation_seed``'s, up to 1, all the way; then image i takes ``seed`` and
    ``variation_seed + i``. ``sampler``, ``schedule`` (a timestep spacing, or a rule for noise levels) and
    ``sampler_options`` (those of :data:`~sd2rt.engines.bundle.sampler_config.SAMPLER_OPTIONS`) stand in for a
    scheduler object, as does ``rescale_betas_zero_snr``, which makes the last timestep pure noise; None is the
    checkpoint's own.
    ``latents`` are the initial noise, [n, C, h, w], before the sampler's
    scale.

    Several values of ``guidance_scale`` are spread evenly over the denoiser's calls, with straight lines between
    them. ``guidance_interval``, two noise levels (noise-to-signal ratios, sigmas of k-diffusion), confines
    guidance to the calls above the first and up to the second. ``preset`` names settings that come before the
    bundle's own: see :mod:`sd2rt.runtime.request.presets`.
    ``prompt_syntax`` is ``plain``, prompts as diffusers reads them, or ``a1111``, as AUTOMATIC1111 does: weights,
    ``AND``, ``BREAK``, edits and any length (see :mod:`sd2rt.runtime.prompts.schedule`). ``clip_skip`` is the number
    of the text encoder's layers that are left out at the end; of a plain prompt only, not of its negative, as in
    diffusers.

    ``image``, ``mask_image`` and ``depth_map`` are a path, ``-`` for standard input, a PIL image or an array
    (see :mod:`sd2rt.runtime.images.init_image`); they are read where the request is made, and refused before they are
    decoded if they have more than ``max_image_pixels``. White of a mask is made
    anew. ``paste`` puts the image's own pixels back where the mask is black; towards them the new ones fade
    over ``paste_blur`` pixels.
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
    sampler_options: Options | None = None
    rescale_betas_zero_snr: bool | None = None
    eta: Number = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    output_type: OutputType = "pil"

    if TYPE_CHECKING:
        # Fields hold what was checked; what may be given is more, and output_type decides the images' type.
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
        """Whether the initial noise is not that of ``seed`` alone."""
        return self.variation_strength > 0

    def seeds_of(self, seed: int, index: int) -> tuple[int, int | None]:
        """The seed of image ``index``, where the first one has ``seed``, and the seed that it varies towards.

        With a variation only the second counts up, as in AUTOMATIC1111's interface: the images are then
        variations of one.
        """
        if self.variation_seed is None or not self.varied:
            return seed + index, None
        return seed, self.variation_seed + index

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.prompt is None) == (self.prompt_embeds is None):
            raise ValueError("give one of prompt and prompt_embeds")
        if self.negative_prompt is not None and self.negative_prompt_embeds is not None:
            raise ValueError("give one of negative_prompt and negative_prompt_embeds")
        if self.prompt_syntax == "a1111":
            for text in (self.prompt, self.negative_prompt):
                named = NAMED_NETWORK.search(text or "")
                if named is not None:
                    raise ValueError(
                        f"the prompt names {named[0][:_LONGEST_SHOWN]}, and a prompt names no files here: give a "
                        "LoRA with --lora FILE:SCALE, or load_lora(), and leave it out of the prompt"
                    )
        if self.varied and self.variation_seed is None:
            raise ValueError(
                "variation_strength is given without variation_seed: give the seed to move towards"
            )
        if self.varied and self.latents is not None:
            raise ValueError("latents are given, and a variation is of a seed's: leave one of the two out")
        if self.timesteps is not None and self.sigmas is not None:
            raise ValueError("give one of timesteps and sigmas")
        check_mask(self.image, self.mask_image)
        if self.paste and self.output_type == "latent":
            raise ValueError(
                "pixels cannot be pasted into latents: leave paste out, or take output_type pil or np"
            )
        for name in ("width", "height"):
            side = getattr(self, name)
            if side is not None:
                check_side(name, side)
        return self


def check_mask(image: Any, mask: Any) -> None:
    """Refuse a mask of another size than its image's.

    Raises:
        RequestError: naming both sizes.
    """
    if image is not None and mask is not None and mask.size != image.size:
        theirs, ours = ("x".join(map(str, picture.size)) for picture in (mask, image))
        raise RequestError(f"the mask is {theirs}, its image {ours}: make them of one size")


def make_request(**fields: Any) -> Request[Any]:
    """A checked request.

    Raises:
        RequestError: the first thing that is wrong, in one line.
    """
    if "generator" in fields:
        raise RequestError(
            "generator is not taken: give seed=N for what torch.Generator('cpu').manual_seed(N) draws"
        )
    for name in ("guidance_scale", "guidance_rescale", "eta", "strength", "variation_strength"):
        value = fields.get(name)
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestError(f"{name} is {value}: give a finite number")
    try:
        return Request.model_validate(fields)
    except ValidationError as error:
        raise RequestError(_one_line(error)) from None


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(item) for item in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where} is no option of a request: choose from {', '.join(Request.model_fields)}"
    reason = first["msg"].removeprefix("Value error, ")
    if not where:
        return reason
    value = " ".join(repr(first["input"]).split())
    value = value if len(value) <= _LONGEST_SHOWN else f"{value[:_LONGEST_SHOWN]}…"
    return f"{where} is {value}: {reason[0].lower()}{reason[1:]}"
