"""The words of `sd2rt run`: which bundle, which prompts, and who reads standard input."""

from __future__ import annotations

import os
import sys

import typer

from sd2rt.engines.bundle.cache import find_bundle
from sd2rt.engines.bundle.manifest import MANIFEST
from sd2rt.engines.errors import RequestError


def bundle_and_prompts(words: list[str], told: bool) -> tuple[str | None, list[str] | None]:
    """The bundle, if one is named, and the prompts; None where they are to be read from standard input.

    Where --from tells both, either may be left out; without a prompt there are none.
    """
    if len(words) > 2:
        raise RequestError(f"{len(words)} arguments, expected [BUNDLE] PROMPT: put the prompt in quotes")
    if not words and not told:
        raise typer.BadParameter("there is none: give one, in quotes", param_hint="PROMPT")
    *bundles, prompt = words or [""]
    if not bundles and words and os.path.isfile(find_bundle(prompt) / MANIFEST):
        if not told:
            raise RequestError(f"{prompt!r} is a bundle, and there is no prompt: give one after it")
        bundles, words = [prompt], []
    bundle = bundles[0] if bundles else None
    return bundle, [] if not words else None if prompt == "-" else [prompt]


def prompts_of_standard_input() -> list[str]:
    try:
        prompts = [line.rstrip("\r\n") for line in sys.stdin]
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not {error.encoding} text ({error.reason})") from None
    prompts = [line for line in prompts if line.strip()]
    if not prompts:
        raise RequestError("standard input holds no prompt: write one a line")
    return prompts


def check_standard_input(prompts: list[str] | None, pictures: dict[str, str | None]) -> None:
    takers = ["the prompts"] * (prompts is None) + [name for name, value in pictures.items() if value == "-"]
    if len(takers) > 1:
        raise RequestError(
            f"{' and '.join(takers)} are to be read from standard input: give one of them a name"
        )
