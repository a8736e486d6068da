"""Tensors of Triton's requests and responses: their names and types, and what they stand for.

Everything here runs in the Python of Triton's backend: NumPy 1.22 or later, and no other package.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.sizes import parse_size
from sd2rt.engines.json_text import parse_json
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import (
    MAX_PROMPT,
    Completed,
    DepthMap,
    Event,
    GenerationRequest,
    ImageRole,
    LoraSet,
    ModelInfo,
    OutputFormat,
    Partial,
    PriorityName,
    Started,
    Stepped,
)

Tensor = NDArray[Any]
INPUTS: dict[str, str] = {
    "prompt": "TYPE_STRING",
    "negative_prompt": "TYPE_STRING",
    "seed": "TYPE_INT64",
    "num_inference_steps": "TYPE_INT32",
    # Not FP32, in which 7.1 is another number than in JSON, and the picture another one.
    "guidance_scale": "TYPE_FP64",
    "width": "TYPE_INT32",
    "height": "TYPE_INT32",
    "n": "TYPE_INT32",
    "image": "TYPE_STRING",
    "mask": "TYPE_STRING",
    "depth_map": "TYPE_STRING",
    "options": "TYPE_STRING",
}
"""Triton's types of the inputs, each of shape [1]; only the prompt is required."""
OUTPUTS: dict[str, tuple[str, int]] = {
    "step": ("TYPE_INT32", 1),
    "steps": ("TYPE_INT32", 1),
    "preview": ("TYPE_STRING", 1),
    "partial_image": ("TYPE_STRING", 1),
    "depth_map": ("TYPE_STRING", 1),
    "image": ("TYPE_STRING", -1),
    "seed": ("TYPE_INT64", -1),
    "facts": ("TYPE_STRING", 1),
}
"""Triton's type and length of each output; a response has those that it has news of."""
_ROLES: tuple[ImageRole, ...] = get_args(ImageRole)
_TEXTS = ("prompt", "negative_prompt", "options")
_LONGEST_OPTIONS = 4 * MAX_PROMPT
_MOST_LORAS, _MOST_IMAGES = 16, 10


@dataclass(frozen=True, slots=True)
class TritonRequest:
    """A request that a worker can take, and how its images are sent."""

    generation: GenerationRequest
    encoded: bool
    """Send images as text in base64: Triton's ``generate`` endpoints put BYTES into JSON strings."""


def request_of(
    tensors: Mapping[str, Tensor], model: ModelInfo, *, max_steps: int, every_step: bool
) -> TritonRequest:
    """Make a worker's request of input tensors. The worker checks the fields that are the runtime's.

    Args:
        tensors: those of :data:`INPUTS` that were sent, of shape [1].
        model: the bundle that is served.
        max_steps: bound of the bundle's default number of steps.
        every_step: ask for an event at each step.

    Raises:
        ServerError: a tensor or an option is invalid.
    """
    values = {name: _value(name, tensor) for name, tensor in tensors.items()}
    images: dict[ImageRole, bytes] = {role: values.pop(role) for role in _ROLES if role in values}
    texts = {name: _text(name, values.pop(name)) for name in _TEXTS if name in values}
    options = _options(texts.pop("options", "{}"))
    fields: dict[str, Any] = {**texts, **values}
    if repeated := sorted(fields.keys() & options.keys()):
        raise _invalid(repeated[0], "is both a tensor and an option: send one")
    fields |= options
    take = _Options(fields)
    encoded = take("response_format", None, _choice(("b64_json",))) is not None
    if (size := take("size", None, _of_type(str, "WIDTHxHEIGHT"))) is not None:
        try:
            width, height = parse_size(size)
        except ValueError:
            raise _invalid("size", "is not WIDTHxHEIGHT, such as 768x768") from None
        fields |= {"width": width, "height": height}
    previews = take("previews", False, _of_type(bool, "true or false"))
    generation = GenerationRequest(
        request_id=f"triton_{uuid.uuid4().hex}",
        model=model.id,
        count=take("n", 1, _whole(1, _MOST_IMAGES)),
        output_format=take("output_format", "png", _choice(get_args(OutputFormat))),
        compression=take("output_compression", None, _whole(0, 100)),
        partial_images=take("partial_images", 0, _whole(0, 3)),
        previews=previews,
        every_step=every_step,
        priority=take("priority", "normal", _choice(get_args(PriorityName))),
        deadline_ms=take("deadline_ms", None, _whole(1, 86_400_000)),
        loras=take("loras", (), _loras),
        images=images,
        fields=fields,
    )
    if not isinstance(fields.get("prompt"), str):
        raise _invalid("prompt", "is missing: send a tensor of one string")
    if isinstance(seed := fields.get("seed"), int) and seed < 0:
        raise _invalid("seed", f"is {seed}: use 0 or more, or leave it out")
    model.complete(fields, images, max_steps)
    return TritonRequest(generation, encoded)


def tensors_of(event: Event, *, encoded: bool) -> dict[str, Tensor]:
    """Return an event's output tensors; none for events that have nothing to send."""
    match event:
        case Started():
            return {}
        case DepthMap(data):
            return {"depth_map": _bytes([data], encoded)}
        case Stepped(step, steps, preview):
            found = {"step": np.array([step], np.int32), "steps": np.array([steps], np.int32)}
            return found if preview is None else {**found, "preview": _bytes([preview], encoded)}
        case Partial(_, data):
            return {"partial_image": _bytes([data], encoded)}
        case Completed(images, facts):
            sizes = [[image.width, image.height] for image in images]
            return {
                "image": _bytes([image.data for image in images], encoded),
                "seed": np.array([image.seed for image in images], np.int64),
                "facts": _bytes([json.dumps({**facts, "sizes": sizes}).encode()], False),
            }


def _bytes(values: list[bytes], encoded: bool) -> Tensor:
    # Not an array of a fixed length, which would drop zeros at the end.
    array = np.empty(len(values), np.object_)
    array[:] = [base64.b64encode(value) for value in values] if encoded else values
    return array


def _invalid(name: str, reason: str) -> ServerError:
    return ServerError("invalid_value", f"{name} {reason}", param=name)


def _value(name: str, tensor: Tensor) -> Any:
    if tensor.size != 1:
        raise _invalid(name, f"has {tensor.size} elements: send one, in a tensor of shape [1]")
    value = tensor.reshape(-1)[0]
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    value = value if isinstance(value, bytes) else value.item()
    if isinstance(value, float) and not isfinite(value):
        raise _invalid(name, "is not finite: use a finite number")
    return value


def _text(name: str, value: bytes) -> str:
    if len(value) > 4 * _LONGEST_OPTIONS:
        raise _invalid(name, f"has {len(value)} bytes: use fewer")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _invalid(name, "is not UTF-8: encode texts as UTF-8") from None


def _options(text: str) -> dict[str, Any]:
    if len(text) > _LONGEST_OPTIONS:
        raise _invalid("options", f"has {len(text)} characters: use at most {_LONGEST_OPTIONS}")
    try:
        options = parse_json(text)
    except ValueError as error:
        raise ServerError("invalid_json", f"options is not JSON: {error}", param="options") from None
    if not isinstance(options, dict):
        raise _invalid("options", "is not a JSON object: send one, such as {}")
    return options


class _Options:
    """Takes options that are not the runtime's out of a request's fields."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def __call__(self, name: str, default: Any, check: Callable[[str, Any], Any]) -> Any:
        value = self._fields.pop(name, None)
        return default if value is None else check(name, value)


def _of_type(kind: type, words: str) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise _invalid(name, f"is {value!r:.60}: use {words}")
        return value

    return check


def _choice(choices: tuple[str, ...]) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise _invalid(name, f"is {value!r:.60}: use {', '.join(choices)}")
        return value

    return check


def _whole(least: int, most: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _invalid(name, f"is {value!r:.60}: use a whole number from {least} to {most}")
        return value

    return check


def _loras(name: str, value: Any) -> LoraSet:
    """Check LoRAs as in the server's JSON: a list of objects of name, scale and text_scale."""
    if not isinstance(value, list) or len(value) > _MOST_LORAS:
        raise _invalid(name, f"is no list of at most {_MOST_LORAS} objects of name and scale")
    return tuple(_lora(name, entry) for entry in value)


def _lora(name: str, entry: Any) -> tuple[str, float] | tuple[str, float, float]:
    known = {"name", "scale", "text_scale"}
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or entry.keys() - known:
        raise _invalid(name, f"has {entry!r:.60}: use objects of name, scale and text_scale")
    scales = [entry.get("scale", 1.0)]
    if entry.get("text_scale") is not None:
        scales.append(entry["text_scale"])
    for scale in scales:
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not abs(scale) <= 1e6:
            raise _invalid(name, f"has the scale {scale!r:.60}: use a number")
    return (entry["name"], *map(float, scales))
