"""LoRAs in prompts, as in ``<lora:name:0.8>``."""

from __future__ import annotations

import math

from sd2rt.engines.printable import shown
from sd2rt.runtime.prompts.syntax import NAMED_NETWORK
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.http.api.image_fields import MAX_LORAS, LoraFields

_LARGEST = 1e6


def take_loras(prompt: str) -> tuple[str, list[LoraFields]]:
    """Return a prompt without its tags, and the LoRAs that they name.

    Raises:
        ServerError: ``not_supported`` or ``invalid_value``.
    """
    loras = []
    for tag in NAMED_NETWORK.finditer(prompt):
        kind, (name, *scales) = tag[1], tag[2].split(":")
        if kind == "hypernet":
            raise ServerError(
                "not_supported", f"{shown(tag[0])} names a hypernetwork: only LoRAs are done", param="prompt"
            )
        if len(scales) > 1 or any("=" in scale for scale in scales):
            raise ServerError(
                "not_supported",
                f"{shown(tag[0])} has several scales: use one, as in <lora:name:0.8>",
                param="prompt",
            )
        loras.append(LoraFields(name=_name(name, tag[0]), scale=_scale(scales, tag[0])))
    if len(loras) > MAX_LORAS:
        raise ServerError(
            "invalid_value", f"the prompt names {len(loras)} LoRAs: use at most {MAX_LORAS}", param="prompt"
        )
    return NAMED_NETWORK.sub("", prompt), loras


def refuse_tags(negative_prompt: str) -> None:
    """Check that a negative prompt names no LoRA.

    Raises:
        ServerError: ``not_supported``.
    """
    if (tag := NAMED_NETWORK.search(negative_prompt)) is not None:
        raise ServerError(
            "not_supported",
            f"the negative prompt has {shown(tag[0])}: LoRAs belong into the prompt",
            param="negative_prompt",
        )


def _name(name: str, tag: str) -> str:
    if not name or len(name) > 200:
        raise ServerError("invalid_value", f"{shown(tag)} names no LoRA: use <lora:name:0.8>", param="prompt")
    return name


def _scale(scales: list[str], tag: str) -> float:
    try:
        scale = float(scales[0]) if scales else 1.0
    except ValueError:
        scale = math.nan
    if not abs(scale) <= _LARGEST:
        raise ServerError(
            "invalid_value", f"the scale of {shown(tag)} is no number: use <lora:name:0.8>", param="prompt"
        )
    return scale
