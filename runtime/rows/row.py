"""A row: one prompt with options of its own, from a line of text or of JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sd2rt.engines.errors import RequestError
from sd2rt.engines.json_text import parse_json
from sd2rt.engines.near_matches import did_you_mean
from sd2rt.engines.printable import repr_of, shown
from sd2rt.runtime.rows import option_text

_NAMES = {
    "negative": "negative_prompt",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "rescale": "guidance_rescale",
    "mask": "mask_image",
    "depth": "depth_map",
    "zero_snr": "rescale_betas_zero_snr",
    "sampler_option": "sampler_options",
    "denoising_strength": "strength",
    "num_images": "count",
    "num_images_per_prompt": "count",
}
"""Names of the command line's options, and others for the same, by the name of the request's field."""

_FIELDS = (
    *("prompt", "negative_prompt", "prompt_syntax", "clip_skip", "seed", "count", "width", "height"),
    *("num_inference_steps", "guidance_scale", "guidance_rescale", "guidance_interval", "preset", "sampler"),
    *(
        "schedule",
        "grid",
        "sampler_options",
        "eta",
        "rescale_betas_zero_snr",
        "timesteps",
        "sigmas",
        "strength",
    ),
    *("image", "mask_image", "depth_map", "noise_level", "paste", "paste_blur", "max_image_pixels", "rng"),
    *("variation_seed", "variation_strength", "only_masked", "mask_padding", "resize_mode"),
)
PATHS = ("image", "mask_image", "depth_map")
"""Fields that name a file."""


_TEXTS = (
    *(
        "prompt",
        "negative_prompt",
        "prompt_syntax",
        "preset",
        "sampler",
        "schedule",
        "grid",
        "rng",
        "resize_mode",
    ),
    *("size", "variation", *PATHS),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt, with the options that differ from the command's."""

    line: int
    """Number of its line, from 1; 0 for a prompt on the command line."""
    prompt: str
    fields: dict[str, Any] = field(default_factory=dict)
    """Fields of its requests, without prompt and seed; sampler and schedule as they were written."""
    seed: int | None = None
    """Seed of its first image; None for the command's, -1 for a random one."""
    count: int | None = None
    """Number of its images; None for the command's."""


def parse_row(text: str, line: int) -> Row:
    """Parse a line: a JSON object, or the text of a prompt.

    Raises:
        RequestError: it is an object with an unknown option, or without a prompt.
    """
    if not text.lstrip().startswith(('{"', "{}")):
        return Row(line, text)
    try:
        values = parse_json(text)
    except ValueError as error:
        raise RequestError(f"it is not JSON ({shown(str(error))}): write an object, or a prompt") from None
    if not isinstance(values, dict):
        raise RequestError("it is not a JSON object: write one, or a prompt")
    return row_of(values, line)


def row_of(values: dict[str, Any], line: int) -> Row:
    """Make a row from the options of a JSON object; raises like :func:`parse_row`."""
    fields: dict[str, Any] = {}
    for given, value in values.items():
        for name, parsed in _parsed(_option(given), given, value).items():
            if name in fields:
                raise RequestError(f"{shown(str(given))} repeats another option: leave one out")
            fields[name] = parsed
    prompt = fields.pop("prompt", None)
    if not isinstance(prompt, str):
        raise RequestError("there is no prompt: add one, as text" if prompt is None else "prompt is not text")
    numbers = {name: _whole(name, fields.pop(name, None)) for name in ("seed", "count")}
    return Row(line, prompt, fields, **numbers)


def is_text_option(given: str) -> bool:
    """Return whether the values of an option are text, as in ``"prompt": "7"``."""
    return _option(given) in _TEXTS


def _option(given: object) -> str:
    """Return the name of an option's field, by a name that a row may have for it."""
    written = str(given).lower().replace("-", "_")
    return _NAMES.get(written, written)


def _parsed(name: str, given: str, value: Any) -> dict[str, Any]:
    """Return the fields of an option."""
    if value is None:
        return {}
    if name in ("size", "variation"):
        parse: Callable[[str], tuple[Any, Any]] = (
            option_text.size if name == "size" else option_text.variation
        )
        if not isinstance(value, str):
            raise RequestError(f'{name} is {shown(repr_of(value))}: write it as text, such as "512x768"')
        names = ("width", "height") if name == "size" else ("variation_seed", "variation_strength")
        return dict(zip(names, parse(value), strict=True))
    if name not in _FIELDS:
        options = sorted({*_NAMES, *_FIELDS, "size", "variation"})
        near = did_you_mean(str(given), options)
        remedy = near.rstrip() or f"choose from {', '.join(options)}"
        raise RequestError(f"there is no option {shown(str(given))}: {remedy}")
    if name in ("guidance_scale", "timesteps", "sigmas") and isinstance(value, str):
        numbers = option_text.numbers(str(given), value)
        return {name: numbers[0] if numbers and len(numbers) == 1 and name == "guidance_scale" else numbers}
    if name == "guidance_interval" and isinstance(value, str):
        return {name: option_text.numbers(str(given), value, between=":")}
    if name == "sampler_options" and isinstance(value, str):
        return {name: option_text.sampler_options([value])}
    if name in PATHS and (not isinstance(value, str) or value == "-"):
        raise RequestError(f"{shown(str(given))} is {shown(repr_of(value))}: name a file")
    if name in ("timesteps", "sigmas") and isinstance(value, list):
        return {name: tuple(value)}
    return {name: value}


def _whole(name: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise RequestError(f"{name} is {shown(repr_of(value))}: use a whole number")
    return value
