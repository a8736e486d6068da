"""What the command line's options hold, as values."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from sd2rt.engines.errors import RequestError

if TYPE_CHECKING:
    from sd2rt.runtime.prompts.textual_inversion import Embedding


_JSON = {"true": "true", "false": "false", "none": "null"}


def sampler_options(given: list[str]) -> dict[str, Any] | None:
    """NAME=VALUE pairs, the values as JSON where they are, else as words; None where there are none."""
    options: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise RequestError(f"--sampler-option {pair!r} is not NAME=VALUE, such as solver_order=3")
        try:
            # As Python writes them, too.
            options[name] = json.loads(_JSON.get(value.lower(), value))
        except ValueError:
            options[name] = value
    return options or None


def numbers(option: str, text: str | None, between: str = ",") -> tuple[float, ...] | None:
    """Numbers with a sign in between; None where the option is not given."""
    if text is None:
        return None
    try:
        return tuple(float(number) for number in text.split(between))
    except ValueError:
        raise RequestError(f"{option} {text!r} is not numbers with {between!r} between them") from None


def one_or_more(option: str, text: str | None) -> float | tuple[float, ...] | None:
    """A number, or several with commas in between; None where the option is not given."""
    given = numbers(option, text)
    return given[0] if given is not None and len(given) == 1 else given


def size(text: str) -> tuple[int, int]:
    """WxH as width and height."""
    from sd2rt.engines.bundle.sizes import parse_size

    try:
        return parse_size(text)
    except ValueError:
        raise RequestError(f"--size {text!r} is not WxH, such as 512x512") from None


def variation(text: str) -> tuple[int, float]:
    """SEED:STRENGTH as both."""
    seed, _, strength = text.rpartition(":")
    try:
        return int(seed), float(strength)
    except ValueError:
        raise RequestError(f"--variation {text!r} is not SEED:STRENGTH, such as 7:0.2") from None


def embedding(text: str, allow_pickle: bool) -> Embedding:
    """What ``--embedding`` names: a file, or a token and its file."""
    from sd2rt.runtime.prompts.textual_inversion import load_embedding

    token, equals, path = text.partition("=")
    if not equals or os.path.exists(text):
        return load_embedding(text, None, allow_pickle=allow_pickle)
    return load_embedding(path, token, allow_pickle=allow_pickle)
