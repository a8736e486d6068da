"""Recognise the texts in PNGs of other programs, to name them in an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sd2rt.engines.json_text import parse_json

_KEYS = {
    "invokeai_metadata": "InvokeAI",
    "sd-metadata": "InvokeAI",
    "Dream": "InvokeAI",
    "workflow": "ComfyUI",
    "prompt": "ComfyUI",
    "fooocus_scheme": "Fooocus",
    "generation_data": "TensorArt",
}
"""Keys of PNG text chunks that only one program writes."""
_JSON_KEYS = {
    "sui_image_params": "SwarmUI",
    "metadata_scheme": "Fooocus",
    "base_model_hash": "Fooocus",
    "uc": "NovelAI",
}
"""Keys of JSON objects in those texts."""


def json_object(text: str) -> dict[str, Any] | None:
    """Parse a text that is a JSON object or list as a whole; a list is an empty object, other texts are None."""
    if not text.lstrip("\ufeff \t\r\n").startswith(("{", "[")):
        return None
    try:
        value = parse_json(text.lstrip("\ufeff"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else {}


def writer_of(chunks: Mapping[str, str]) -> str | None:
    """Return the program that wrote these text chunks, if it can be told."""
    for key, program in _KEYS.items():
        if key in chunks:
            return program
    for text in chunks.values():
        content = json_object(text)
        for key, program in _JSON_KEYS.items():
            if content is not None and key in content:
                return program
    return None
