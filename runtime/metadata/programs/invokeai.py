"""Translate InvokeAI's settings, which it runs by diffusers' schedulers: three forms, by its version."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sd2rt.engines.bundle.sampler_config import SamplerName
from sd2rt.engines.json_text import parse_json
from sd2rt.engines.printable import shown
from sd2rt.runtime.metadata.imported import ImportedSettings, file_stem

_SAMPLERS: dict[str, SamplerName] = {
    "ddim": "ddim",
    "ddpm": "ddpm",
    "deis": "deis",
    "dpmpp_2m": "dpmpp-2m",
    "dpmpp_2m_sde": "dpmpp-2m-sde",
    "dpmpp_2s": "dpmpp-2s",
    "dpmpp_3m": "dpmpp-2m",
    "dpmpp_sde": "dpmpp-sde",
    "euler": "euler",
    "euler_a": "euler-a",
    "heun": "heun",
    "kdpm_2": "dpm2",
    "kdpm_2_a": "dpm2-a",
    "lcm": "lcm",
    "lms": "lms",
    "pndm": "pndm",
    "tcd": "tcd",
    "unipc": "unipc",
}
_OLD_SAMPLERS = {
    "plms": "pndm",
    "k_lms": "lms",
    "k_euler": "euler",
    "k_euler_a": "euler_a",
    "k_heun": "heun",
    "k_dpm_2": "kdpm_2",
    "k_dpm_2_a": "kdpm_2_a",
    "k_dpmpp_2": "dpmpp_2m",
    "dpmpp_2": "dpmpp_2m",
}
"""Names before version 3."""
_OPTIONS: dict[str, dict[str, Any]] = {"dpmpp_3m": {"solver_order": 3}}
_DRAWS_NOISE = ("ddpm", "dpmpp-2m-sde", "dpmpp-sde", "euler-a", "dpm2-a", "lcm", "tcd")

_IGNORED_KEYS = (
    "app_version",
    "generation_mode",
    "rand_device",
    "init_image",
    "positive_style_prompt",
    "negative_style_prompt",
    "hrf_enabled",
    "hrf_method",
    "hrf_strength",
    "type",
    "sampler",
    "orig_hash",
    "postprocessing",
    "variations",
    "facetool",
    "upscale",
    "seamless",
    "hires_fix",
    "perlin",
    "threshold",
    "canvas_v2_metadata",
    "ref_images",
    "regions",
)
"""Settings that do not affect the picture, or that are noted where they do."""
_WEIGHTS = re.compile(r"\)[-+]|\w[-+]{1,}(?=[\s,.]|$)|\)[0-9.]+|\.(?:and|blend|swap)\(")
_NEGATIVE = re.compile(r"\[([^\[\]]*)\]")
_DREAM = re.compile(r'"(.*)"(.*)', re.DOTALL)
_DREAM_OPTION = re.compile(r"\s-{1,2}(\w+)(?:[ =]+([^\s-]\S*|-[0-9.]+))?")
_DREAM_NAMES = {
    "s": "steps",
    "S": "seed",
    "W": "width",
    "H": "height",
    "C": "cfg_scale",
    "A": "scheduler",
    "f": "strength",
    "I": "init_image",
    "M": "init_mask",
}


def read_invokeai(text: str) -> ImportedSettings:
    """Translate the chunk ``invokeai_metadata`` (version 3 and later).

    Raises:
        ValueError: it is not a JSON object.
    """
    values = parse_json(text)
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    settings = _Settings(values)
    for name in ("prompt", "negative_prompt"):
        key = "positive_prompt" if name == "prompt" else name
        settings.add_prompt(name, values.pop(key, ""))
    settings.read(values)
    return settings


def read_sd_metadata(text: str) -> ImportedSettings:
    """Translate the chunk ``sd-metadata`` (version 2).

    Raises:
        ValueError: it is not a JSON object, or has no settings.
    """
    content = parse_json(text)
    image = content.get("image") if isinstance(content, dict) else None
    if not isinstance(image, dict):
        raise ValueError("it has no settings of an image")
    values = dict(image)
    settings = _Settings(values)
    prompts = values.pop("prompt", "")
    parts = prompts if isinstance(prompts, list) else [{"prompt": prompts}]
    texts = [str(part.get("prompt", "")) for part in parts if isinstance(part, dict)]
    if len(texts) > 1:
        settings.notes.append("prompts with weights are not blended: they are joined")
    settings.add_combined_prompt(" ".join(texts))
    values |= {"scheduler": values.get("sampler"), "model": {"name": content.get("model_weights")}}
    settings.read(values)
    return settings


def read_dream(text: str) -> ImportedSettings:
    """Translate the chunk ``Dream``: the prompt in quotes, and options of a command line.

    Raises:
        ValueError: it has another form.
    """
    match = _DREAM.fullmatch(text.strip())
    if match is None:
        raise ValueError("it has no prompt in quotes")
    values: dict[str, Any] = {}
    for name, value in _DREAM_OPTION.findall(match[2]):
        values[_DREAM_NAMES.get(name, name)] = value or True
    settings = _Settings(values)
    settings.add_combined_prompt(match[1])
    settings.read(values)
    return settings


class _Settings(ImportedSettings):
    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__("InvokeAI")
        device = values.get("rand_device")
        self.fields["rng"] = "cuda" if device == "cuda" else "cpu"
        if device not in (None, "cpu", "cuda"):
            self.notes.append(f"rand_device {shown(str(device))} is unknown: the CPU's numbers are used")
        mode = str(values.get("generation_mode", values.get("type", "")))
        self.from_image = "img2img" in mode or bool(values.get("init_image")) or "paint" in mode
        self.masked = "paint" in mode or bool(values.get("init_mask"))

    def add_prompt(self, name: str, text: object) -> None:
        """Set a prompt. Its weights are Compel's: both the syntax and the rule differ from those here."""
        prompt = str(text or "")
        self.fields[name] = prompt
        note = "weights of the prompt (Compel's + and -) are read as text"
        if _WEIGHTS.search(prompt) and note not in self.notes:
            self.notes.append(note)

    def add_combined_prompt(self, text: str) -> None:
        """Set both prompts from one text, whose parts in square brackets are negative."""
        self.add_prompt("prompt", " ".join(_NEGATIVE.sub(" ", text).split()))
        self.add_prompt("negative_prompt", ", ".join(part.strip() for part in _NEGATIVE.findall(text)))

    def read(self, values: dict[str, Any]) -> None:
        """Translate the settings beside the prompts."""
        self.add_size("width and height", values.pop("width", None), values.pop("height", None))
        self.add_number("steps", "num_inference_steps", values.pop("steps", None), int)
        self.add_number("cfg_scale", "guidance_scale", values.pop("cfg_scale", None), float)
        self.add_number(
            "cfg_rescale_multiplier", "guidance_rescale", values.pop("cfg_rescale_multiplier", None), float
        )
        self.add_number("seed", "seed", values.pop("seed", None), int)
        strength = values.pop("strength", None)
        if self.from_image:
            self.add_number("strength", "strength", strength, float)
        clip_skip = values.pop("clip_skip", None)
        if clip_skip:
            self.add_number("clip_skip", "clip_skip", clip_skip, int)
        self._add_scheduler(values.pop("scheduler", None))
        model = values.pop("model", None)
        if isinstance(model, Mapping):
            self.model = file_stem(model.get("name") or model.get("model_name"))
        self._add_loras(values.pop("loras", None))
        for name in (
            "perlin",
            "threshold",
            "seamless",
            "hires_fix",
            "hrf_enabled",
            "postprocessing",
            "variations",
        ):
            if values.get(name) and values[name] != "0":
                self.note_ignored(
                    name, values[name] if isinstance(values[name], int | float | str) else "set"
                )
        for name, value in values.items():
            if name in _IGNORED_KEYS or value in (None, False, [], {}, ""):
                continue
            self.note_ignored(
                name, value if isinstance(value, int | float | str) else f"{len(value)} entries"
            )

    def _add_scheduler(self, name: object) -> None:
        if not isinstance(name, str):
            self.note_ignored("scheduler", name)
            return
        plain = _OLD_SAMPLERS.get(name, name)
        karras = plain.endswith("_k") and plain not in _SAMPLERS
        plain = plain.removesuffix("_k") if karras else plain
        if plain not in _SAMPLERS:
            self.notes.append(f"scheduler {shown(name)} is not supported: the bundle's default is used")
            return
        sampler = _SAMPLERS[plain]
        self.fields["sampler"] = sampler
        if karras:
            self.fields["schedule"] = "karras"
        if plain in _OPTIONS:
            self.fields["sampler_options"] = dict(_OPTIONS[plain])
        if name in _OLD_SAMPLERS and name.startswith("k_"):
            self.notes.append(
                f"sampler {name}: versions before 2.3 had k-diffusion's noise levels, those here are diffusers'"
            )
        if sampler in _DRAWS_NOISE:
            self.notes.append(
                f"scheduler {shown(name)}: InvokeAI draws the noise of its steps from another seed; the picture "
                "differs"
            )

    def _add_loras(self, loras: object) -> None:
        for entry in loras if isinstance(loras, list) else []:
            if not isinstance(entry, Mapping):
                continue
            model, weight = entry.get("model") or entry.get("lora"), entry.get("weight")
            name = (
                file_stem(model.get("name") or model.get("model_name"))
                if isinstance(model, Mapping)
                else None
            )
            if name is not None:
                scale = (
                    None if isinstance(weight, bool) or not isinstance(weight, int | float) else float(weight)
                )
                self.loras.append((name, scale))
