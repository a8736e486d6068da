"""Fields of a request for images, with their types and ranges; the same for JSON and forms."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError

from sd2rt.engines.bundle.sampler_config import A1111Schedule, GridName, SamplerName
from sd2rt.engines.printable import is_text, repr_of, shown
from sd2rt.runtime.images.preparation import ResizeMode
from sd2rt.runtime.prompts.syntax import PromptSyntax
from sd2rt.runtime.request.presets import PresetName
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import MAX_PROMPT, OutputFormat, PriorityName
from sd2rt.runtime.server.http.api.uploads import Upload, texts_as_values

_MAX_SCALE = 1e6
_MAX_COUNT = 10
MAX_LORAS = 16
ScheduleName = Literal[
    "leading", "trailing", "linspace", "karras", "exponential", "beta", "lambdas", "ays"
]  # fmt: skip
Fields = TypeVar("Fields", bound="ImageFields")
Body = TypeVar("Body", bound=BaseModel)


def _text(value: str) -> str:
    if not is_text(value):
        raise ValueError("the text is not valid Unicode, send it as UTF-8")
    return value


def _whole(value: Any) -> Any:
    """Take 20.0 for 20, as JSON's schemas do."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, AfterValidator(_text)]
# The validator of whole numbers comes last, so that the JSON schema keeps their ranges.
FromFloat = BeforeValidator(_whole)
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Truth = Annotated[bool, Strict()]
Ignored = Annotated[Any, Field(description="Accepted without effect.")]


class LoraFields(BaseModel):
    """A LoRA that the operator has named, its scale, and the text encoder's if it differs."""

    model_config = ConfigDict(extra="forbid")

    name: Text = Field(max_length=200)
    scale: Annotated[Number, Field(ge=-_MAX_SCALE, le=_MAX_SCALE)] = 1.0
    text_scale: Annotated[Number, Field(ge=-_MAX_SCALE, le=_MAX_SCALE)] | None = None


SETTINGS = (
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "seed",
    "sampler",
    "schedule",
    "grid",
    "preset",
    "prompt_syntax",
    "clip_skip",
    "rng",
    "strength",
    "noise_level",
    "paste_blur",
    "only_masked",
    "mask_padding",
    "resize_mode",
)
"""Fields that are keyword arguments of a request of the runtime's under the same names, beside the prompt."""


class ImageFields(BaseModel):
    """Fields of OpenAI's API, and sd2rt's own beside them; None is a field's default. Others are ignored."""

    model_config = ConfigDict(extra="ignore", title="ImageRequest")

    prompt: Text = Field(max_length=MAX_PROMPT)
    model: Text | None = Field(default=None, description="A served bundle; default: the first that can.")
    n: Annotated[int, Strict(), Field(ge=1, le=_MAX_COUNT), FromFloat] | None = Field(
        default=None, description="Images."
    )
    size: Text | None = Field(
        default=None, description="WIDTHxHEIGHT in pixels, multiples of 8; or auto, the default."
    )
    output_format: OutputFormat | None = None
    output_compression: Annotated[int, Strict(), Field(ge=0, le=100), FromFloat] | None = Field(
        default=None, description="Quality of JPEG and WebP, by default 100; PNG is lossless."
    )
    response_format: Literal["b64_json"] | None = None
    stream: Truth | None = None
    partial_images: Annotated[int, Strict(), Field(ge=0, le=3), FromFloat] | None = None
    user: Text | None = Field(default=None, max_length=512)
    safety_identifier: Text | None = Field(default=None, max_length=512)
    background: Literal["auto", "opaque"] | None = None
    quality: Ignored = None
    style: Ignored = None
    moderation: Ignored = None
    complexity: Ignored = None

    negative_prompt: Text | None = Field(default=None, max_length=MAX_PROMPT)
    num_inference_steps: Annotated[int, Strict(), Field(ge=1), FromFloat] | None = None
    guidance_scale: Annotated[Number, Field(ge=-_MAX_SCALE, le=_MAX_SCALE)] | None = None
    guidance_rescale: Annotated[Number, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Strict(), Field(ge=0, le=2**63 - 1), FromFloat] | None = Field(
        default=None, description="Of the first image; image i has seed + i."
    )
    sampler: SamplerName | None = None
    schedule: ScheduleName | A1111Schedule | None = None
    grid: GridName | None = Field(
        default=None, description="Origin of noise levels and timesteps; default: diffusers."
    )
    preset: PresetName | None = None
    prompt_syntax: PromptSyntax | None = None
    clip_skip: Annotated[int, Strict(), Field(ge=0, le=100), FromFloat] | None = None
    rng: Annotated[str, Field(pattern=r"^(cpu|cuda(:[1-9][0-9]{0,3}(x(1024|1536|2048))?)?)$")] | None = None
    priority: PriorityName | None = None
    deadline_ms: Annotated[int, Strict(), Field(ge=1, le=86_400_000), FromFloat] | None = None
    loras: list[LoraFields] | None = Field(default=None, max_length=MAX_LORAS)

    def request_fields(self) -> dict[str, Any]:
        """Return the keyword arguments of a request of the runtime's, without size and images."""
        names = ("prompt", *SETTINGS)
        return {name: value for name in names if (value := getattr(self, name, None)) is not None}


class EditFields(ImageFields):
    """The same with an image to start from; files are no part of it."""

    model_config = ConfigDict(title="EditRequest")

    strength: Annotated[Number, Field(gt=0, le=1)] | None = None
    noise_level: Annotated[int, Strict(), Field(ge=0, le=1000), FromFloat] | None = None
    paste_blur: Annotated[Number, Field(ge=0, le=256)] | None = None
    only_masked: Truth | None = None
    mask_padding: Annotated[int, Strict(), Field(ge=0, le=4096), FromFloat] | None = None
    resize_mode: ResizeMode | None = None
    input_fidelity: Ignored = None


class JobFields(EditFields):
    """The same for jobs, which are watched by their events."""

    model_config = ConfigDict(title="JobRequest")

    previews: Truth | None = Field(default=None, description="A small picture with each progress event.")


def parse_fields(kind: type[Fields], upload: Upload) -> tuple[Fields, list[str]]:
    """Check the fields of a body; return them with the names of those that nobody reads.

    Raises:
        ServerError: ``invalid_value``, with the field as ``param``.
    """
    known = set(kind.model_fields)
    for name in known & upload.repeated:
        if kind.model_fields[name].annotation is Any:
            # It has no effect, however often.
            continue
        raise ServerError("invalid_value", f"{name} is given more than once: send it once", param=name)
    values = texts_as_values(upload.fields, json_kinds(kind)) if upload.from_form else upload.fields
    try:
        fields = kind.model_validate(values)
    except ValidationError as error:
        raise _refusal(error) from None
    ignored = [shown(name) for name in values if name not in known]
    return fields, sorted(ignored)[:100]


def parse_body(kind: type[Body], upload: Upload) -> Body:
    """Check the fields of a body in JSON, and ignore others.

    Raises:
        ServerError: ``invalid_value``, with the field as ``param``.
    """
    try:
        return kind.model_validate(upload.fields)
    except ValidationError as error:
        raise _refusal(error) from None


def json_kinds(kind: type[BaseModel]) -> dict[str, str]:
    """Return the JSON type of each field, for forms."""
    found: dict[str, str] = {}
    for name, hint in typing.get_type_hints(kind).items():
        origins = [typing.get_origin(member) or member for member in (hint, *typing.get_args(hint))]
        names = {bool: "boolean", int: "integer", float: "number", list: "array"}
        found[name] = next((names[origin] for origin in origins if origin in names), "string")
    return found


def _refusal(error: ValidationError) -> ServerError:
    first = error.errors()[0]
    name = ".".join(
        str(part) for part in first["loc"] if not str(part).startswith(("function-", "constrained-"))
    )
    reason = first["msg"].removeprefix("Value error, ")
    reason = f"{reason[0].lower()}{reason[1:]}"
    if first["type"] == "missing":
        return ServerError("invalid_value", f"{name} is missing: send it", param=name)
    hint = _HINTS.get((name, first["input"]) if isinstance(first["input"], str) else (name, ""), "")
    return ServerError(
        "invalid_value", f"{name} is {shown(repr_of(first['input']))}: {hint or reason}", param=name
    )


_HINTS: Mapping[tuple[str, str], str] = {
    ("response_format", "url"): "images are sent as b64_json, and kept nowhere: leave it out",
    ("background", "transparent"): "these models draw no transparency: leave it out",
    ("output_format", "gif"): "use png, jpeg or webp",
    ("output_format", "svg"): "use png, jpeg or webp",
}
