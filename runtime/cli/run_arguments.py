"""Positional arguments of `sd2rt run`, and the use of standard input."""

from __future__ import annotations

import os
import sys

import typer

from sd2rt.engines.bundle.cache import find_bundle
from sd2rt.engines.bundle.manifest import MANIFEST
from sd2rt.engines.errors import RequestError

_MAX_CHARACTERS = 16 << 20
_MAX_PROMPTS = 100_000


def bundle_and_prompts(words: list[str], has_recipe: bool) -> tuple[str | None, list[str] | None]:
    """Split the arguments into a bundle, None if it is not named, and prompts, None for standard input.

    With a recipe (``--from``) both may be missing; without a prompt the list is empty.

    Raises:
        RequestError: too many arguments, or a bundle without a prompt.
        typer.BadParameter: no argument.
    """
    if len(words) > 2:
        raise RequestError(f"{len(words)} arguments, expected [BUNDLE] PROMPT: put the prompt in quotes")
    if not words and not has_recipe:
        raise typer.BadParameter("no prompt given: add one, in quotes", param_hint="PROMPT")
    *bundles, prompt = words or [""]
    if not bundles and words and os.path.isfile(find_bundle(prompt) / MANIFEST):
        if not has_recipe:
            raise RequestError(f"{prompt!r} is a bundle, and no prompt is given: add one after it")
        bundles, words = [prompt], []
    bundle = bundles[0] if bundles else None
    return bundle, [] if not words else None if prompt == "-" else [prompt]


def prompts_of_standard_input() -> list[str]:
    """Read the prompts, one a line; empty lines are skipped.

    Raises:
        RequestError: standard input has no prompt, is longer than any list of prompts, or is not text.
    """
    try:
        # Read up to a limit: a pipe need not end.
        text = sys.stdin.read(_MAX_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not {error.encoding} text ({error.reason})") from None
    if len(text) > _MAX_CHARACTERS:
        raise RequestError(
            f"standard input has more than {_MAX_CHARACTERS} characters: give fewer prompts at a time"
        )
    prompts = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    if len(prompts) > _MAX_PROMPTS:
        raise RequestError(
            f"standard input holds {len(prompts)} prompts, the limit is {_MAX_PROMPTS}: give fewer at a time"
        )
    if not prompts:
        raise RequestError("standard input holds no prompt: write one a line")
    return prompts


def check_standard_input(prompts: list[str] | None, files: dict[str, str | None]) -> None:
    """Check that standard input is read once; ``files`` are the options that name a file, with their values.

    Raises:
        RequestError: two of prompts and files would be read from it.
    """
    readers = ["the prompts"] * (prompts is None) + [name for name, value in files.items() if value == "-"]
    if len(readers) > 1:
        raise RequestError(f"{' and '.join(readers)} all read standard input: name files for all but one")
