"""Names of the prompt syntaxes, without their parsers, so that requests can be checked cheaply."""

from __future__ import annotations

import math
import re
from typing import Literal

PromptSyntax = Literal["plain", "a1111"]

NAMED_NETWORK = re.compile(r"<(lora|lyco|hypernet):([^<>]*)>")
"""AUTOMATIC1111's syntax for extra network files and their strengths in prompts."""


def parse_network(arguments: str) -> tuple[str, float, float]:
    """Parse ``NAME[:TEXT[:UNET]]`` or ``NAME[:te=TEXT][:unet=UNET]`` of a tag: name, UNet's scale, text's scale.

    As in AUTOMATIC1111, the first number is the text encoder's, and the UNet's too if there is no second.

    Raises:
        ValueError: a scale is not a finite number, or there is an argument of another kind.
    """
    name, *rest = arguments.split(":")
    positional = [argument for argument in rest if "=" not in argument]
    named = dict(argument.split("=", 1) for argument in rest if "=" in argument)
    if len(positional) > 2 or not set(named) <= {"te", "unet"}:
        raise ValueError("arguments other than the scales of the text encoder and the UNet")
    text = float(named.get("te", positional[0] if positional else 1))
    unet = float(named.get("unet", positional[1] if len(positional) > 1 else text))
    if not (math.isfinite(text) and math.isfinite(unet)):
        raise ValueError("a scale that is not finite")
    return name, unet, text
