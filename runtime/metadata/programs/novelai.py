"""Translate NovelAI's settings, as far as they have a meaning for another model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sd2rt.runtime.metadata.imported import ImportedSettings
from sd2rt.runtime.metadata.programs.k_diffusion_names import add_sampler

_SAMPLERS = {"ddim_v3": "ddim", "nai_smea": None, "nai_smea_dyn": None, "k_dpmpp_sde": "dpmpp_sde"}
_SCHEDULES = {"native": "normal", None: "normal"}
_NOT_A_SETTING = (
    "n_samples",
    "request_type",
    "signed_hash",
    "v4_prompt",
    "v4_negative_prompt",
    "version",
    "uncond_scale",
    "lora_unet_weights",
    "lora_clip_weights",
)
_NUMERIC_WEIGHT = re.compile(r"-?[0-9.]+::")


def read_novelai(values: Mapping[str, Any]) -> ImportedSettings:
    """Translate the JSON object of the chunk ``Comment``."""
    settings = ImportedSettings("NovelAI")
    rest = dict(values)
    settings.fields |= {"prompt_syntax": "a1111", "rng": "cpu"}
    settings.fields["prompt"] = _prompt(str(rest.pop("prompt", "") or ""), settings)
    settings.fields["negative_prompt"] = _prompt(str(rest.pop("uc", "") or ""), settings)
    settings.from_image = rest.get("request_type") in ("Img2ImgRequest", "ImageToImageRequest")
    settings.add_size("size", rest.pop("width", None), rest.pop("height", None))
    settings.add_number("steps", "num_inference_steps", rest.pop("steps", None), int)
    settings.add_number("scale", "guidance_scale", rest.pop("scale", None), float)
    settings.add_number("cfg_rescale", "guidance_rescale", rest.pop("cfg_rescale", None), float)
    settings.add_number("seed", "seed", rest.pop("seed", None), int)
    strength = rest.pop("strength", None)
    if settings.from_image:
        settings.add_number("strength", "strength", strength, float)
    sampler, schedule = rest.pop("sampler", None), rest.pop("noise_schedule", None)
    if isinstance(sampler, str):
        sampler = _SAMPLERS.get(sampler, sampler.removeprefix("k_"))
    if isinstance(schedule, str | None):
        schedule = _SCHEDULES.get(schedule, schedule)
    add_sampler(settings, sampler, schedule)
    for name, value in rest.items():
        if name not in _NOT_A_SETTING and value not in (None, False, [], {}, ""):
            settings.note_ignored(name, value if isinstance(value, int | float | str) else "set")
    settings.notes.append("NovelAI's models are not Stable Diffusion 2: the picture differs")
    return settings


def _prompt(text: str, settings: ImportedSettings) -> str:
    """Write its weights in AUTOMATIC1111's syntax: braces weigh 1.05, square brackets 1 / 1.05."""
    if _NUMERIC_WEIGHT.search(text):
        settings.notes.append("weights of the form 1.2::words:: are read as text")
    replaced = {"(": r"\(", ")": r"\)", "{": "(", "}": ":1.05)", "[": "(", "]": f":{1 / 1.05:.6g})"}
    return "".join(replaced.get(character, character) for character in text)
