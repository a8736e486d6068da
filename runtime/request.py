"""What can be asked of a pipeline, by Python, by the command line, later by a server: one model, checked once."""

from __future__ import annotations

import math
import operator
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError, model_validator

from sd2rt.engines.errors import RequestError
from sd2rt.engines.sampling import check_side

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


Whole = Annotated[int, BeforeValidator(_whole), Strict()]
Array = Annotated[NDArray[Any], BeforeValidator(_array)]
Text = Annotated[str, BeforeValidator(_text)]


class Request(BaseModel):
    """One prompt and how its images are to be made; names and meanings are diffusers', unless said otherwise.

    ``seed`` is what ``torch.Generator("cpu").manual_seed(seed)`` would be given; image i of the request takes
    ``seed + i``. ``sampler`` and ``schedule`` (a timestep spacing) stand in for a scheduler object; None is
    the checkpoint's own. ``latents`` are the initial noise, [n, C, h, w], before the sampler's scale.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    prompt: Text | None = None
    negative_prompt: Text | None = None
    num_inference_steps: Whole = Field(50, ge=1)
    guidance_scale: float = Field(7.5, allow_inf_nan=False)
    guidance_rescale: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    height: Whole | None = None
    width: Whole | None = None
    num_images_per_prompt: Whole = Field(1, ge=1)
    seed: Whole | None = None
    latents: Array | None = None
    prompt_embeds: Array | None = None
    negative_prompt_embeds: Array | None = None
    sampler: str | None = None
    schedule: str | None = None
    eta: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    output_type: OutputType = "pil"

    @property
    def guided(self) -> bool:
        """Whether the unconditional row is evaluated too: as in diffusers, where the scale is above 1."""
        return self.guidance_scale > 1

    @model_validator(mode="after")
    def _consistent(self) -> Request:
        if (self.prompt is None) == (self.prompt_embeds is None):
            raise ValueError("give one of prompt and prompt_embeds")
        if self.negative_prompt is not None and self.negative_prompt_embeds is not None:
            raise ValueError("give one of negative_prompt and negative_prompt_embeds")
        if self.timesteps is not None and self.sigmas is not None:
            raise ValueError("give one of timesteps and sigmas")
        for name in ("width", "height"):
            side = getattr(self, name)
            if side is not None:
                check_side(name, side)
        return self


def make_request(**fields: Any) -> Request:
    """A checked request.

    Raises:
        RequestError: the first thing that is wrong, in one line.
    """
    if "generator" in fields:
        raise RequestError(
            "generator is not taken: give seed=N for what torch.Generator('cpu').manual_seed(N) draws"
        )
    for name in ("guidance_scale", "guidance_rescale", "eta"):
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
