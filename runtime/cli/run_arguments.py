"""Positional arguments of `sd2rt run`, and the use of standard input."""

from __future__ import annotations

import os

import typer

from sd2rt.engines.bundle.cache import cached_bundles, find_bundle
from sd2rt.engines.bundle.manifest import MANIFEST
from sd2rt.engines.demo.files import DEMO_NAMES
from sd2rt.engines.errors import RequestError
from sd2rt.engines.near_matches import near_matches
from sd2rt.engines.printable import shown


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
    if not bundles and words and _names_bundle(prompt):
        if not has_recipe:
            raise RequestError(f"{prompt!r} is a bundle, and no prompt is given: add one after it")
        bundles, words = [prompt], []
    bundle = bundles[0] if bundles else None
    return bundle, [] if not words else None if prompt == "-" else [prompt]


def _names_bundle(word: str) -> bool:
    """Return whether a single argument is a bundle, built or a demo that can be, rather than a prompt."""
    return word in DEMO_NAMES or os.path.isfile(find_bundle(word) / MANIFEST)


def lookalike_notes(bundle: str | None, prompt: str | None) -> list[str]:
    """Return a note if a prompt of one word, without a bundle before it, is almost the name of one."""
    if bundle is not None or prompt is None or len(prompt.split()) != 1:
        return []
    near = near_matches(prompt, {*cached_bundles(), *DEMO_NAMES})
    return (
        [f"{shown(prompt)} is used as the prompt; did you mean the bundle {' or '.join(near)}?"]
        if near
        else []
    )


def check_standard_input(prompts: list[str] | None, files: dict[str, str | None]) -> None:
    """Check that standard input is read once; ``files`` are the options that name a file, with their values.

    Raises:
        RequestError: two of prompts and files would be read from it.
    """
    readers = ["the prompts"] * (prompts is None) + [name for name, value in files.items() if value == "-"]
    if len(readers) > 1:
        raise RequestError(f"{' and '.join(readers)} all read standard input: name files for all but one")
