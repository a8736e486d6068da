"""A checksum of a JSON object in the object itself, which shows any change of a value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

CHECKSUM = "checksum"


def checksum(data: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object without its own checksum, independent of layout and order of keys."""
    others = {key: value for key, value in data.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(others, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
