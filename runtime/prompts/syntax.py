"""Names of the prompt syntaxes, without their parsers, so that requests can be checked cheaply."""

from __future__ import annotations

import re
from typing import Literal

PromptSyntax = Literal["plain", "a1111"]

NAMED_NETWORK = re.compile(r"<(lora|lyco|hypernet):([^<>]*)>")
"""AUTOMATIC1111's syntax for extra network files and their strengths in prompts."""
