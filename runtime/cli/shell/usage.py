"""Help for wrong usage: what was probably meant by an option or a command that there is not."""

from __future__ import annotations

import os
import re
from typing import Any

_ENVIRONMENT = re.compile(r" \(env var: '(\w+)'\)")

_UNDERSCORES = re.compile(r"--[a-z0-9]+(?:_[a-z0-9]+)+(?:=|$)")

_OPTIONS = {
    "--prompt": 'the prompt is an argument, in quotes: sd2rt run BUNDLE "a fox"',
    "-p": 'the prompt is an argument, in quotes: sd2rt run BUNDLE "a fox"',
    "--model": "the bundle is an argument, before the prompt",
    "--checkpoint": "the bundle is an argument, before the prompt",
    "--bundle": "the bundle is an argument, before the prompt",
    "--scheduler": "--sampler chooses the method, --schedule its noise levels",
    "--fp16": "precision is chosen when a bundle is built: sd2rt build CHECKPOINT --precision fp16",
    "--half": "precision is chosen when a bundle is built: sd2rt build CHECKPOINT --precision fp16",
    "--bf16": "use --precision bf16",
    "--gpu": "use --device cuda",
    "--cuda": "use --device cuda",
    "--cpu": "use --device cpu, which is the default",
    "-n": "use --count for the number of images",
    "--n-samples": "use --count for the number of images",
    "--batch-size": "use --count for the number of images: they are drawn in batches",
    "--n-iter": "use --count for the number of images",
    "--hires": "use --upscale with a bundle of kind x4-upscaler",
    "--outdir": "use --output with a folder",
}
"""Advice on options of other programs that have no counterpart of one word here."""


def with_dashes(argument: str) -> str:
    """Return an option that was written like a keyword argument, as in --cfg_scale=7, with dashes."""
    if _UNDERSCORES.match(argument) is None:
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def wrong_usage(error: Any) -> str:
    """Message of Typer's exception for wrong usage, with near matches."""
    option = getattr(error, "option_name", None)
    if option is None or not hasattr(error, "possibilities"):
        return f"{_ENVIRONMENT.sub(_if_set, error.format_message())} (see --help)"
    if option in _OPTIONS:
        remedy = _OPTIONS[option]
    else:
        near = list(error.possibilities or ())
        remedy = f"did you mean {' or '.join(near)}?" if near else "leave it out"
    return f"there is no option {option}: {remedy} (see --help)"


def _if_set(match: re.Match[str]) -> str:
    """Keep the name of an option's variable if it is set: the value may come from there."""
    return match[0] if match[1] in os.environ else ""
