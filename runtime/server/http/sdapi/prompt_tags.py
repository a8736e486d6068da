"""LoRAs in prompts, as in ``<lora:name:0.8>``."""

from __future__ import annotations

from sd2rt.engines.printable import shown
from sd2rt.runtime.prompts.syntax import NAMED_NETWORK, parse_network
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
        if tag[1] == "hypernet":
            raise ServerError(
                "not_supported", f"{shown(tag[0])} names a hypernetwork: only LoRAs are done", param="prompt"
            )
        loras.append(_lora(tag[2], tag[0]))
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


def _lora(arguments: str, tag: str) -> LoraFields:
    try:
        name, scale, text_scale = parse_network(arguments)
        if max(abs(scale), abs(text_scale)) > _LARGEST:
            raise ValueError("a scale that is too large")
    except ValueError:
        raise ServerError(
            "invalid_value",
            f"the scale of {shown(tag)} is no number, or one each for text encoder and UNet: use <lora:name:0.8>, or "
            "<lora:name:0.5:0.8>",
            param="prompt",
        ) from None
    if not name or len(name) > 200:
        raise ServerError("invalid_value", f"{shown(tag)} names no LoRA: use <lora:name:0.8>", param="prompt")
    return LoraFields(name=name, scale=scale, text_scale=None if text_scale == scale else text_scale)
