"""OpenCLIP's text cleaning, which comes before its tokens."""

from __future__ import annotations

import html
import re

_UNCHANGED_BY_FTFY = re.compile(r"[\t\n\r -%'-~]*")
"""Printable ASCII without ``&``."""


def clean(text: str) -> str:
    """Repair and lower a text as OpenCLIP does.

    ftfy repairs encodings, straightens quotes, splits ligatures, narrows full-width letters, removes control
    characters and composes accents; HTML entities are replaced twice, white space becomes one space.
    """
    if _UNCHANGED_BY_FTFY.fullmatch(text) is None:
        # Takes longer to import than most prompts take to encode.
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()
