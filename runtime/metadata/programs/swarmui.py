"""Translate SwarmUI's parameters, which it runs by ComfyUI."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sd2rt.engines.printable import shown
from sd2rt.runtime.metadata.imported import ImportedSettings, file_stem
from sd2rt.runtime.metadata.programs.comfyui_prompts import as_a1111
from sd2rt.runtime.metadata.programs.k_diffusion_names import add_sampler, add_start

_IGNORED_KEYS = (
    "aspectratio",
    "automaticvae",
    "swarm_version",
    "images",
    "batchsize",
    "sidelength",
    "wildcardseed",
    "wildcardseedbehavior",
    "donotsave",
    "nopreviews",
    "loratencweights",
    "resolution",
)
"""Parameters that do not affect the picture, or that repeat others."""
_EMBEDDING = re.compile(r"<embed(?:ding)?:([^<>]*)>")
_LORA = re.compile(r"<lora:([^<>:]*)(?::([^<>]*))?>")
_TAG = re.compile(r"<(\w+)(?:\[[^\]<>]*\])?:[^<>]*>")


def read_swarmui(parameters: Mapping[str, Any]) -> ImportedSettings:
    """Translate the object ``sui_image_params``. Its numbers may be strings."""
    settings = ImportedSettings("SwarmUI")
    values = dict(parameters)
    settings.fields |= {"prompt_syntax": "a1111", "rng": "cpu"}
    for name, key in (("prompt", "prompt"), ("negative_prompt", "negativeprompt")):
        settings.fields[name] = _prompt(str(values.pop(key, "") or ""), settings)
    settings.from_image = "initimage" in values or "initimagecreativity" in values
    settings.masked = "maskimage" in values
    for key in ("initimage", "maskimage"):
        values.pop(key, None)
    settings.add_size("width and height", values.pop("width", None), values.pop("height", None))
    settings.add_number("cfgscale", "guidance_scale", values.pop("cfgscale", None), float)
    settings.add_number("seed", "seed", values.pop("seed", None), int)
    # Its defaults for Stable Diffusion 2.
    add_sampler(settings, values.pop("sampler", "euler"), values.pop("scheduler", "normal"))
    creativity = values.pop("initimagecreativity", 0.6)
    _add_start(settings, values.pop("steps", None), creativity)
    _add_variation(settings, values.pop("variationseed", None), values.pop("variationseedstrength", None))
    settings.model = file_stem(values.pop("model", None))
    _add_loras(
        settings, values.pop("loras", None), values.pop("loraweights", None), values.get("loratencweights")
    )
    layer = values.pop("clipstopatlayer", None)
    if isinstance(layer, int) and layer < -2:
        settings.add_number("clipstopatlayer", "clip_skip", -2 - layer, int)
    elif layer not in (None, -2):
        settings.note_ignored("clipstopatlayer", layer)
    for name, value in values.items():
        if name not in _IGNORED_KEYS:
            settings.note_ignored(name, value)
    if not settings.from_image and settings.fields.get("grid") == "a1111":
        settings.notes.append(
            "SwarmUI starts from noise that is stronger by 0.2 % than in the grid a1111: the picture is close, not "
            "the same"
        )
    return settings


def _add_start(settings: ImportedSettings, steps: Any, creativity: Any) -> None:
    """Set steps and strength: it begins at step round(steps x (1 - creativity)) of all, and makes the rest."""
    add_start(settings, steps, None)
    total = settings.fields.get("num_inference_steps")
    if not settings.from_image or total is None:
        return
    try:
        made = total - round(total * (1 - float(creativity)))
    except (TypeError, ValueError, OverflowError):
        made = -1
    if not 0 < made <= total:
        settings.note_ignored("initimagecreativity", creativity)
    elif settings.fields.get("grid") == "a1111":
        settings.fields["strength"] = 1.0 if made == total else (made - 0.5) / total
    else:
        settings.fields["strength"] = min((made + 0.5) / total, 1.0)


def _add_variation(settings: ImportedSettings, seed: Any, strength: Any) -> None:
    if strength in (None, 0, "0"):
        return
    before = dict(settings.fields)
    settings.add_number("variationseed", "variation_seed", seed, int)
    try:
        share = float(strength)
    except (TypeError, ValueError):
        share = -1.0
    if "variation_seed" not in settings.fields or not 0 <= share <= 1:
        settings.fields = before
        settings.note_ignored("variationseedstrength", strength)
        return
    settings.fields["variation_strength"] = share
    if share < 1:
        settings.notes.append(
            "the variation only approximates the original: SwarmUI interpolates each column of the noise separately"
        )


def _listed(value: Any) -> list[str]:
    """Items of a list, or of a text with commas."""
    items = value if isinstance(value, list) else str(value).split(",")
    return [str(item).strip() for item in items if str(item).strip()]


def _add_loras(settings: ImportedSettings, names: Any, weights: Any, text_weights: Any) -> None:
    if names is None:
        return
    scales = [] if weights is None else _listed(weights)
    text_scales = [] if text_weights is None else _listed(text_weights)
    for index, given in enumerate(_listed(names)):
        name, scale = file_stem(given) or given, _scale(scales[index] if index < len(scales) else "1")
        settings.loras.append((name, scale))
        text_scale = _scale(text_scales[index]) if index < len(text_scales) else scale
        if text_scale is not None and text_scale != scale:
            settings.text_scales[name] = text_scale


def _scale(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _prompt(text: str, settings: ImportedSettings) -> str:
    for name in _EMBEDDING.findall(text):
        settings.embeddings.append(file_stem(name) or name)
    text = _EMBEDDING.sub(lambda match: file_stem(match[1]) or "", text)
    for name, weight in _LORA.findall(text):
        if (stem := file_stem(name)) is not None and stem not in dict(settings.loras):
            settings.loras.append((stem, _scale(weight or "1")))
    text = _LORA.sub("", text)
    for kind in sorted({match[1] for match in _TAG.finditer(text)}):
        settings.notes.append(f"<{shown(kind)}:...> in the prompt is not supported and is left out")
    return as_a1111(_TAG.sub("", text), settings)
