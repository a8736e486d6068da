"""What can be asked of a pipeline, by Python, by the command line, later by a server: one model, checked once."""

from __future__ import annotations

import math
import operator
from typing import Annotated, Any, Literal

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

from sd2rt.engines.errors import RequestError
from sd2rt.engines.sampling import check_side
from sd2rt.runtime.image_file import MAX_PIXELS
from sd2rt.runtime.rng import check_rng

OutputType = Literal["pil", "np", "latent"]


_SHOWN = 80


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
    from sd2rt.runtime.image_input import load_image

    return load_image(value, max_pixels=_limit(info))


def _mask(value: Any, info: ValidationInfo) -> Any:
    if value is None:
        return None
    from sd2rt.runtime.mask import load_mask

    return load_mask(value, max_pixels=_limit(info))


def _depth(value: Any, info: ValidationInfo) -> Any:
    if value is None:
        return None
    from sd2rt.runtime.depth_map import load_depth

    return load_depth(value, max_pixels=_limit(info))


def _number(value: Any) -> Any:
    """Numbers of any library, and neither texts nor truth values that could pass for one."""
    if value is None or (isinstance(value, float | int) and not isinstance(value, bool)):
        return value
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise ValueError("give a number")
    return float(value)


Whole = Annotated[int, BeforeValidator(_whole), Strict()]
Number = Annotated[float, BeforeValidator(_number)]
Array = Annotated[NDArray[Any], BeforeValidator(_array)]
Text = Annotated[str, BeforeValidator(_text)]
Rng = Annotated[str, AfterValidator(check_rng)]
# A PIL image once checked; pydantic need not know more of it.
Image = Annotated[Any, BeforeValidator(_image)]
Mask = Annotated[Any, BeforeValidator(_mask)]
Depth = Annotated[Any, BeforeValidator(_depth)]


class Request(BaseModel):
    """One prompt and how its images are to be made; names and meanings are diffusers', unless said otherwise.

    ``num_inference_steps``, ``guidance_scale``, ``strength`` and ``noise_level`` of None are the bundle's own
    for the task. ``seed`` is what ``torch.Generator("cpu").manual_seed(seed)`` would be given; image i of the
    request takes ``seed + i``. With ``rng`` ``cuda`` (or ``cuda:N``, ``cuda:NxT``; see
    :func:`~sd2rt.runtime.rng.make_generator`) it is torch's generator of a GPU. ``variation_strength`` above 0
    moves the initial noise towards ``variation_seed``'s, up to 1, all the way; then image i takes ``seed`` and
    ``variation_seed + i``. ``sampler`` and ``schedule`` (a timestep spacing) stand in for a scheduler
    object; None is the checkpoint's own. ``latents`` are the initial noise, [n, C, h, w], before the sampler's
    scale.

    ``image``, ``mask_image`` and ``depth_map`` are a path, ``-`` for standard input, a PIL image or an array
    (see :mod:`sd2rt.runtime.image_input`); they are read where the request is made, and refused before they are
    decoded if they have more than ``max_image_pixels``. White of a mask is made
    anew. ``paste`` puts the image's own pixels back where the mask is black; towards them the new ones fade
    over ``paste_blur`` pixels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    prompt: Text | None = None
    negative_prompt: Text | None = None
    max_image_pixels: Whole = Field(MAX_PIXELS, ge=1)
    image: Image = None
    mask_image: Mask = None
    depth_map: Depth = None
    strength: Number | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    noise_level: Whole | None = Field(None, ge=0)
    paste: bool = False
    paste_blur: Number = Field(4.0, ge=0, le=256, allow_inf_nan=False)
    num_inference_steps: Whole | None = Field(None, ge=1)
    guidance_scale: Number | None = Field(None, allow_inf_nan=False)
    guidance_rescale: Number = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    height: Whole | None = None
    width: Whole | None = None
    num_images_per_prompt: Whole = Field(1, ge=1)
    seed: Whole | None = None
    rng: Rng = "cpu"
    variation_seed: Whole | None = None
    variation_strength: Number = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    latents: Array | None = None
    prompt_embeds: Array | None = None
    negative_prompt_embeds: Array | None = None
    sampler: str | None = None
    schedule: str | None = None
    eta: Number = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    output_type: OutputType = "pil"

    @property
    def guided(self) -> bool:
        """Whether the unconditional row is evaluated too: as in diffusers, where the scale is above 1.

        Told of a request whose defaults have been filled in.
        """
        return self.guidance_scale is not None and self.guidance_scale > 1

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
    def _consistent(self) -> Request:
        if (self.prompt is None) == (self.prompt_embeds is None):
            raise ValueError("give one of prompt and prompt_embeds")
        if self.negative_prompt is not None and self.negative_prompt_embeds is not None:
            raise ValueError("give one of negative_prompt and negative_prompt_embeds")
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


def make_request(**fields: Any) -> Request:
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
    value = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
    return f"{where} is {value}: {reason[0].lower()}{reason[1:]}"
