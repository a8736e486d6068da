"""Recognise the program that wrote the texts in an image file, and translate its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sd2rt.engines.json_text import parse_json
from sd2rt.runtime.metadata.imported import ImportedSettings
from sd2rt.runtime.metadata.programs.comfyui import read_comfyui
from sd2rt.runtime.metadata.programs.fooocus import read_fooocus
from sd2rt.runtime.metadata.programs.invokeai import read_dream, read_invokeai, read_sd_metadata
from sd2rt.runtime.metadata.programs.novelai import read_novelai
from sd2rt.runtime.metadata.programs.swarmui import read_swarmui

Reader = Callable[[], ImportedSettings]

_OBJECTS: dict[str, tuple[str, Callable[[Mapping[str, Any]], ImportedSettings]]] = {
    "metadata_scheme": ("Fooocus", read_fooocus),
    "base_model_hash": ("Fooocus", read_fooocus),
    "uc": ("NovelAI", read_novelai),
}
"""Programs by a key of the JSON object that they write."""

_CHUNKS: dict[str, tuple[str, Callable[[str], ImportedSettings]]] = {
    "invokeai_metadata": ("InvokeAI", read_invokeai),
    "sd-metadata": ("InvokeAI", read_sd_metadata),
    "Dream": ("InvokeAI", read_dream),
}
"""Programs by the text chunk that they write."""

_NAMED = {"generation_data": "TensorArt", "workflow": "ComfyUI"}
"""Programs whose texts are not read, by the text chunk that they write."""


def json_object(text: str) -> dict[str, Any] | None:
    """Parse a text that is a JSON object or list as a whole; a list is an empty object, other texts are None."""
    if not text.lstrip("\ufeff \t\r\n").startswith(("{", "[")):
        return None
    try:
        value = parse_json(text.lstrip("\ufeff"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else {}


def program_of(chunks: Mapping[str, str]) -> tuple[str, Reader | None] | None:
    """Return the program that wrote these texts, with a function that translates them if there is one.

    The function raises ValueError for a text that is not what the program writes.
    """
    for key, (program, read_chunk) in _CHUNKS.items():
        if key in chunks:
            return program, partial(read_chunk, chunks[key])
    for text in chunks.values():
        content = json_object(text)
        if content is None:
            continue
        parameters = content.get("sui_image_params")
        if isinstance(parameters, dict):
            return "SwarmUI", partial(read_swarmui, parameters)
        for key, (program, read_object) in _OBJECTS.items():
            if key in content:
                return program, partial(read_object, content)
    if json_object(chunks.get("prompt", "")) is not None:
        return "ComfyUI", partial(read_comfyui, chunks["prompt"])
    return next(((program, None) for key, program in _NAMED.items() if key in chunks), None)
