"""Parse JSON from elsewhere, with limits that the code which reads it can rely on."""

from __future__ import annotations

import json
from typing import Any

_MAX_DEPTH = 64
"""Manifests, configurations and metadata nest to about ten levels."""
MAX_DIGITS = 300
"""Digits of an integer that still has a float."""


def parse_json(text: str | bytes, *, max_digits: int = MAX_DIGITS) -> Any:
    """Parse JSON whose values can be nested, printed and converted to floats without an error.

    Raises:
        ValueError: it is not JSON, is nested more than 64 levels deep, or holds an integer of more than
            ``max_digits`` digits.
    """
    try:
        value = json.loads(text, parse_int=lambda digits: _integer(digits, max_digits))
    except RecursionError:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep") from None
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return value
    raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")


def _integer(digits: str, max_digits: int) -> int:
    if len(digits) > max_digits:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)
