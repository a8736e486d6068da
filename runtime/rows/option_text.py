"""Parse the text of options, as the command line and rows write them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sd2rt.engines.errors import RequestError
from sd2rt.engines.json_text import parse_json

if TYPE_CHECKING:
    from sd2rt.runtime.prompts.textual_inversion import Embedding

_JSON = {"true": "true", "false": "false", "none": "null"}


def sampler_options(pairs: list[str]) -> dict[str, Any] | None:
    """Parse NAME=VALUE pairs, values as JSON if they are valid JSON, else as text; None if there are no pairs."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise RequestError(f"--sampler-option {pair!r} is not NAME=VALUE, such as solver_order=3")
        text = _JSON.get(value.lower(), value)
        try:
            # Python's spelling of constants is accepted too.
            options[name] = parse_json(text)
        except ValueError:
            options[name] = value
    return options or None


def numbers(option: str, text: str | None, between: str = ",") -> tuple[float, ...] | None:
    """Parse numbers separated by ``between``; None if the option was not given."""
    if text is None:
        return None
    try:
        return tuple(float(number) for number in text.split(between))
    except ValueError:
        raise RequestError(f"{option} {text!r} is not a list of numbers separated by {between!r}") from None


def size(text: str) -> tuple[int, int]:
    """Parse WxH as width and height."""
    from sd2rt.engines.bundle.sizes import parse_size

    try:
        return parse_size(text)
    except ValueError:
        raise RequestError(f"--size {text!r} is not WxH, such as 512x512") from None


def variation(text: str) -> tuple[int, float]:
    """Parse SEED:STRENGTH."""
    seed, _, strength = text.rpartition(":")
    try:
        return int(seed), float(strength)
    except ValueError:
        raise RequestError(f"--variation {text!r} is not SEED:STRENGTH, such as 7:0.2") from None


def sampler_and_schedule(
    sampler: str | None, schedule: str | None, grid: str = "diffusers"
) -> dict[str, str]:
    """Parse the names of a sampler and a schedule of a grid, sd2rt's or another program's, to fields of a request.

    The schedule comes before one that the sampler's name ends with, as in DPM++ 2M Karras.
    """
    from sd2rt.runtime.metadata.typed_sampler import typed_sampler, typed_schedule

    fields = {}
    if sampler is not None:
        name, implied = typed_sampler(sampler, grid)
        fields = {"sampler": name} if implied is None else {"sampler": name, "schedule": implied}
    return fields if schedule is None else {**fields, "schedule": typed_schedule(schedule, grid)}


def embedding(text: str, allow_pickle: bool) -> Embedding:
    """Read the textual inversion that ``--embedding`` names: a file, or TOKEN=FILE."""
    from sd2rt.runtime.prompts.textual_inversion import load_embedding

    token, equals, path = text.partition("=")
    if not equals or os.path.exists(text):
        return load_embedding(text, None, allow_pickle=allow_pickle)
    return load_embedding(path, token, allow_pickle=allow_pickle)
