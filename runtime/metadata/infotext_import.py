"""Settings of AUTOMATIC1111's web interface as a request's, and what of them cannot be honoured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sd2rt.engines.bundle.sampler_config import SamplerName
from sd2rt.engines.bundle.sizes import check_side, parse_size
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.metadata.infotext import OWN_SAMPLERS, SAMPLERS, SCHEDULES, Parameters
from sd2rt.runtime.prompts.syntax import NAMED_NETWORK
from sd2rt.runtime.request.request import Request
from sd2rt.runtime.samplers import schedules_of

_SAMPLERS: dict[str, SamplerName] = {theirs.casefold(): ours for ours, theirs in SAMPLERS.items()}
_SAMPLERS |= {name: name for name in (*SAMPLERS, *OWN_SAMPLERS)}

_SCHEDULES = {theirs.casefold(): ours for ours, theirs in SCHEDULES.items()} | {
    # The timesteps that these walk are those of a spacing, or nearly.
    "uniform": "linspace",
    "normal": "linspace",
    "sgm uniform": "trailing",
    "simple": "trailing",
    "turbo": "trailing",
    "ddim": "leading",
}
_SPACINGS = {"ddim": "leading", "pndm": "leading", "unipc": "leading", "lcm": None, "ddpm": None}
"""What samplers take there where no schedule type is named; all others are evenly spaced, both ends included."""

_AUTOMATIC: dict[SamplerName, str] = {
    "dpmpp-2m": "karras",
    "dpmpp-sde": "karras",
    "dpmpp-2m-sde": "exponential",
    "dpm2": "karras",
    "dpm2-a": "karras",
}
"""What its newer versions take where the schedule type is said to be automatic."""

_BROWNIAN = ("dpmpp-sde", "dpmpp-2m-sde")

_IGNORED_KEYS = (
    "Version",
    "Model",
    "Model hash",
    "VAE hash",
    "Batch size",
    "Batch pos",
    "Init image hash",
    "User",
    "Hashes",
    "Lora hashes",
    "TI hashes",
)
"""Settings that say nothing of the picture, or nothing that is not said elsewhere."""


class A1111Settings:
    """What a text of that interface asks for, as fields of a request.

    Attributes:
        fields: of a request.
        notes: a line each on what cannot be honoured.
        from_image: whether it began with an image, which is not in the text.
        masked: whether part of that was masked.
        model: the name of the model, where it is told.
        model_hash: the first ten digits of the SHA-256 of its file, where it is told.
        embeddings: the textual inversions that the prompts named, by name; its hashes of them are of another kind.
        loras: the LoRAs that the prompts named, which are no longer in them, with their scales where there is one.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._values = dict(parameters.values)
        self.fields: dict[str, Any] = {
            "prompt": parameters.prompt,
            "negative_prompt": parameters.negative_prompt,
        }
        self.notes: list[str] = []
        self.model = self._values.get("Model")
        self.model_hash = self._values.get("Model hash")
        told = self._values.get("TI hashes", "")
        self.loras: list[tuple[str, float | None]] = []
        self.embeddings = [pair.partition(":")[0].strip() for pair in told.split(",") if pair.strip()]
        hires = any(name.startswith("Hires") for name in self._values)
        self.from_image = "Denoising strength" in self._values and not hires
        self.masked = self.from_image and any(
            name in self._values for name in ("Mask blur", "Masked content")
        )
        own = self._values.get("Version", "").startswith("sd2rt")
        self._prompts(own)
        self._sampler()
        self._numbers(hires)
        self._noise()
        self._clip_skip(own)
        for name, value in self._values.items():
            if name not in _IGNORED_KEYS:
                self._unused(name, value)

    def _take(self, name: str) -> str | None:
        return self._values.pop(name, None)

    def _unused(self, name: str, value: str | None) -> None:
        if value is not None:
            self.notes.append(f"{shown(f'{name}: {value}')} is not honoured")

    def _prompts(self, own: bool) -> None:
        texts = f"{self.fields['prompt']} {self.fields['negative_prompt']}"
        syntax = self._take("Prompt syntax")
        if own and syntax is None:
            return
        self.fields["prompt_syntax"] = "a1111"
        for name in ("prompt", "negative_prompt"):
            self.fields[name] = NAMED_NETWORK.sub("", self.fields[name])
        for kind, network in NAMED_NETWORK.findall(texts):
            name, _, strength = network.partition(":")
            if kind == "hypernet":
                self.notes.append(f"the hypernetwork {shown(name)} is not applied")
            else:
                self.loras.append((name, _strength(strength)))

    def _sampler(self) -> None:
        told, schedule = self._take("Sampler"), self._take("Schedule type")
        spacing = self._take("Spacing")
        if told is None:
            self._unused("Schedule type", schedule)
            return
        name, combined = _split(told)
        automatic = schedule is not None and schedule.casefold() == "automatic"
        if schedule is None or automatic:
            schedule = combined
        if name.endswith(" heun") and name.removesuffix(" heun") in _SAMPLERS:
            name = name.removesuffix(" heun")
            self.fields["sampler_options"] = {"solver_type": "heun"}
        sampler = _SAMPLERS.get(name)
        if sampler is None:
            self.notes.append(f"Sampler {shown(told)} is not known: the bundle's own takes its place")
            self._unused("Schedule type", schedule)
            return
        self.fields["sampler"] = sampler
        if sampler in _BROWNIAN:
            self.notes.append(f"Sampler {shown(told)} draws other noise on the way than there")
        if spacing is not None:
            chosen: str | None = spacing
        elif schedule is None:
            chosen = _AUTOMATIC.get(sampler) if automatic else None
            chosen = _SPACINGS.get(sampler, "linspace") if chosen is None else chosen
        else:
            chosen = _SCHEDULES.get(schedule.casefold(), schedule)
        if chosen in schedules_of(sampler):
            self.fields["schedule"] = chosen
        elif chosen is not None and (schedule is not None or spacing is not None):
            self.notes.append(
                f"Schedule type {shown(chosen)} is none of {sampler}'s: its usual one takes its place"
            )

    def _numbers(self, hires: bool) -> None:
        self._number("Steps", "num_inference_steps", int)
        self._number("CFG scale", "guidance_scale", float)
        self._number("CFG rescale", "guidance_rescale", float)
        self._number("Seed", "seed", int)
        if not hires:
            self._number("Denoising strength", "strength", float)
        for told in ("Eta DDIM", "Eta"):
            if self.fields.get("sampler") == "ddim":
                self._number(told, "eta", float)
        size = self._take("Size")
        if size is None:
            return
        try:
            sides = dict(zip(("width", "height"), parse_size(size), strict=True))
            for name, side in sides.items():
                check_side(name, side)
        except (RequestError, ValueError) as error:
            self.notes.append(f"Size {shown(size)} cannot be honoured ({error}): the bundle's own is taken")
        else:
            self.fields |= sides

    def _number(self, told: str, name: str, kind: Callable[[str], Any]) -> None:
        value = self._take(told)
        if value is None:
            return
        try:
            number = kind(value)
            if not math.isfinite(number):
                raise ValueError
            Request.model_validate({"prompt": "", name: number})
        except (ValueError, OverflowError):
            self.notes.append(f"{told} {shown(value)} cannot be honoured")
        else:
            self.fields[name] = number

    def _noise(self) -> None:
        source = self._take("RNG")
        rng = "cpu" if source is not None and source.upper() == "CPU" else "cuda"
        if source is not None and source.upper() not in ("CPU", "GPU", "NV"):
            self.notes.append(f"RNG {shown(source)} is not known: a GPU's takes its place")
        self.fields["rng"] = rng
        seed, strength = self._take("Variation seed"), self._take("Variation seed strength")
        if seed is None or strength is None:
            return
        try:
            variation = {"variation_seed": int(seed), "variation_strength": float(strength)}
            Request.model_validate({"prompt": "", **variation})
        except ValueError:
            self.notes.append(f"Variation seed {shown(seed)}, strength {shown(strength)} cannot be honoured")
            return
        self.fields |= variation
        if variation["variation_strength"] not in (0, 1):
            self.notes.append(
                "the variation is nearly that of the picture: there each column of the noise turns by itself"
            )

    def _clip_skip(self, own: bool) -> None:
        told = self._take("Clip skip")
        # That interface has no use for it with SD2's text encoder; Forge has, and says f before its version.
        if told is None or not (own or self._values.get("Version", "").startswith("f")):
            return
        if not told.isdecimal() or len(told) > 2 or int(told) < 1:
            self.notes.append(f"Clip skip {shown(told)} cannot be honoured")
        elif int(told) > 1:
            # There 1 is the last layer; here that is none skipped.
            self.fields["clip_skip"] = int(told) - 1


def _strength(text: str) -> float | None:
    """What stands after a LoRA's name; 1 where nothing does, None where it is more than a number."""
    try:
        scale = float(text or 1)
    except ValueError:
        return None
    return scale if math.isfinite(scale) else None


def _split(sampler: str) -> tuple[str, str | None]:
    """A sampler's name, and the schedule type that old versions said with it: DPM++ 2M Karras."""
    name = sampler.strip().casefold()
    for schedule in ("karras", "exponential"):
        if name.endswith(f" {schedule}"):
            return name.removesuffix(f" {schedule}"), schedule
    return name, None


def shown(text: str, limit: int = 60) -> str:
    """A value in a message: printable, on one line, not long."""
    clear = "".join(character if character.isprintable() else "?" for character in text[:limit])
    return clear if len(text) <= limit else f"{clear}…"
