"""Syntaxes of prompts, without what reads them: a request is checked before any encoder is loaded."""

from __future__ import annotations

import re
from typing import Literal

PromptSyntax = Literal["plain", "a1111"]

NAMED_NETWORK = re.compile(r"<(lora|lyco|hypernet):([^<>]*)>")
"""How AUTOMATIC1111's prompts name files of networks, and their strengths."""
