"""Translate Fooocus's settings: its JSON, and its texts in AUTOMATIC1111's form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sd2rt.runtime.metadata.imported import ImportedSettings, file_stem
from sd2rt.runtime.metadata.infotext import Parameters
from sd2rt.runtime.metadata.programs.comfyui_prompts import as_a1111
from sd2rt.runtime.metadata.programs.k_diffusion_names import add_sampler

_SIZE = re.compile(r"\(?\s*(\d{1,9})\s*[,x]\s*(\d{1,9})\s*\)?")
_IGNORED_KEYS = (
    "version",
    "created_by",
    "metadata_scheme",
    "loras",
    "lora_hashes",
    "refiner_switch",
    "refiner_model_hash",
    "prompt_expansion",
    "styles",
    "performance",
)
"""Settings that do not affect the picture, or whose effect is in others: full prompts and steps."""
_INFOTEXT_NAMES = {
    "Raw prompt": "prompt",
    "Raw negative prompt": "negative_prompt",
    "Steps": "steps",
    "Sampler": "sampler",
    "Scheduler": "scheduler",
    "VAE": "vae",
    "CFG scale": "guidance_scale",
    "Seed": "seed",
    "Size": "resolution",
    "Sharpness": "sharpness",
    "ADM Guidance": "adm_guidance",
    "Refiner Swap Method": "refiner_swap_method",
    "Adaptive CFG": "adaptive_cfg",
    "Clip skip": "clip_skip",
    "Overwrite Switch": "overwrite_switch",
    "FreeU": "freeu",
    "Model": "base_model",
    "Model hash": "base_model_hash",
    "Refiner": "refiner_model",
    "Refiner hash": "refiner_model_hash",
    "Lora hashes": "lora_hashes",
    "Lora weights": "lora_weights",
    "User": "created_by",
    "Version": "version",
    "Styles": "styles",
    "Performance": "performance",
}
_LABELS = {
    "euler": "euler",
    "euler a": "euler_ancestral",
    "heun": "heun",
    "dpm2": "dpm_2",
    "dpm2 a": "dpm_2_ancestral",
    "lms": "lms",
    "dpm++ 2s a": "dpmpp_2s_ancestral",
    "dpm++ sde": "dpmpp_sde",
    "dpm++ 2m": "dpmpp_2m",
    "dpm++ 2m sde": "dpmpp_2m_sde",
    "lcm": "lcm",
    "ddim": "ddim",
    "unipc": "uni_pc",
}
"""Names of samplers in its texts, without Karras."""


def read_fooocus(values: Mapping[str, Any]) -> ImportedSettings:
    """Translate its JSON object."""
    settings = ImportedSettings("Fooocus")
    rest = dict(values)
    settings.fields |= {"prompt_syntax": "a1111", "rng": "cpu"}
    for name in ("prompt", "negative_prompt"):
        plain, full = rest.pop(name, ""), rest.pop(f"full_{name}", None)
        # Styles, and what it added to the prompt: each is encoded by itself, which is what BREAK does.
        texts = [str(text) for text in full] if isinstance(full, list) and full else [str(plain or "")]
        settings.fields[name] = " BREAK ".join(as_a1111(text, settings) for text in texts if text) or ""
    settings.add_number("steps", "num_inference_steps", rest.pop("steps", None), int)
    settings.add_number("guidance_scale", "guidance_scale", rest.pop("guidance_scale", None), float)
    settings.add_number("seed", "seed", rest.pop("seed", None), int)
    resolution = rest.pop("resolution", None)
    size = _SIZE.fullmatch(str(resolution))
    if size is not None:
        settings.add_size("resolution", size[1], size[2])
    else:
        settings.note_ignored("resolution", resolution)
    add_sampler(settings, rest.pop("sampler", None), rest.pop("scheduler", None))
    settings.model = file_stem(rest.pop("base_model", None))
    digest = rest.pop("base_model_hash", None)
    settings.model_hash = digest if isinstance(digest, str) and digest else None
    _add_loras(settings, rest)
    if rest.get("vae") in ("", "Default (model)"):
        del rest["vae"]
    if rest.get("refiner_model") in ("", "None"):
        del rest["refiner_model"]
    if isinstance(layer := rest.pop("clip_skip", None), int | str) and str(layer) not in ("1", "2"):
        settings.note_ignored("clip_skip", layer)
    for name, value in rest.items():
        if name not in _IGNORED_KEYS:
            settings.note_ignored(name, value)
    return settings


def is_fooocus_text(parameters: Parameters) -> bool:
    """Return True for a text in AUTOMATIC1111's form that Fooocus wrote."""
    return parameters.values.get("Version", "").startswith("Fooocus")


def read_fooocus_text(parameters: Parameters) -> ImportedSettings:
    """Translate a text in AUTOMATIC1111's form. Its scheduler and random numbers are not AUTOMATIC1111's."""
    values: dict[str, Any] = {
        _INFOTEXT_NAMES.get(key, key): value for key, value in parameters.values.items()
    }
    # The raw prompts are those before styles.
    values |= {"prompt": parameters.prompt, "negative_prompt": parameters.negative_prompt}
    label = str(values.get("sampler", "")).removesuffix(" Karras")
    values["sampler"] = _LABELS.get(label.casefold(), label)
    for index, pair in enumerate(str(values.pop("lora_weights", "")).split(",")):
        name, separator, weight = pair.rpartition(":")
        if separator:
            values[f"lora_combined_{index + 1}"] = f"{name.strip()} : {weight.strip()}"
    return read_fooocus(values)


def _add_loras(settings: ImportedSettings, rest: dict[str, Any]) -> None:
    for key in [key for key in rest if key.startswith("lora_combined_")]:
        parts = str(rest.pop(key)).split(" : ")
        name = file_stem(parts[-2]) if len(parts) >= 2 else None
        if name is None or name == "None" or parts[0] == "False":
            continue
        try:
            settings.loras.append((name, float(parts[-1])))
        except ValueError:
            settings.loras.append((name, None))
