"""Translate AUTOMATIC1111's settings to request fields, with notes on those that are not supported."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from sd2rt.engines.json_text import parse_json
from sd2rt.engines.printable import shown
from sd2rt.runtime.metadata.hires import add_hires
from sd2rt.runtime.metadata.imported import ImportedSettings
from sd2rt.runtime.metadata.infotext import Parameters
from sd2rt.runtime.metadata.sampler_names import NOT_REPRODUCED, find_sampler, split_schedule
from sd2rt.runtime.prompts.syntax import NAMED_NETWORK, parse_network
from sd2rt.runtime.request.request import Request

_SCHEDULE_TYPES_SINCE = (1, 9)
"""Version of AUTOMATIC1111 that separated schedule types from samplers."""
_TIMESTEPS_SINCE = (1, 6)
"""Version from which DDIM, PLMS and UniPC visit the timesteps that the grid reproduces."""
_LISTED = ("ddim", "pndm", "unipc")
_VERSION = re.compile(r"v?(\d{1,3})\.(\d{1,3})")

_DEFAULTS = {"Beta schedule alpha": 0.6, "Beta schedule beta": 0.6}
"""Settings that are written even with their default, which is the only value that is supported."""

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
    "Civitai metadata",
    "Created Date",
)
"""Settings that do not affect the image, or that repeat other settings."""


class A1111Settings(ImportedSettings):
    """Request fields translated from AUTOMATIC1111's generation parameters.

    ``model_hash`` has the first ten digits. Hashes of textual inversions are dropped: AUTOMATIC1111 computes them
    differently. Tags of LoRAs are removed from the prompts.
    """

    def __init__(self, parameters: Parameters) -> None:
        super().__init__("AUTOMATIC1111")
        self._values = dict(parameters.values)
        self.fields |= {"prompt": parameters.prompt, "negative_prompt": parameters.negative_prompt}
        self.model = self._values.get("Model")
        self.model_hash = self._values.get("Model hash")
        inversions = self._values.get("TI hashes", "")
        self.embeddings = [pair.partition(":")[0].strip() for pair in inversions.split(",") if pair.strip()]
        hires = "Hires upscale" in self._values or "Hires resize" in self._values
        self.from_image = "Denoising strength" in self._values and not hires
        self.masked = self.from_image and any(
            name in self._values for name in ("Mask blur", "Masked content")
        )
        by_sd2rt = self._values.get("Version", "").startswith("sd2rt")
        self._prompts(by_sd2rt)
        self._sampler(by_sd2rt)
        self._numbers(hires)
        self._masked_area()
        self._noise()
        self._clip_skip(by_sd2rt)
        self._resources()
        if hires:
            add_hires(self, self._values)
        for name, value in self._values.items():
            if name not in _IGNORED_KEYS:
                self.note_ignored(name, value)

    def _take(self, name: str) -> str | None:
        return self._values.pop(name, None)

    def _prompts(self, by_sd2rt: bool) -> None:
        texts = f"{self.fields['prompt']} {self.fields['negative_prompt']}"
        syntax = self._take("Prompt syntax")
        if by_sd2rt and syntax is None:
            return
        self.fields["prompt_syntax"] = "a1111"
        for name in ("prompt", "negative_prompt"):
            self.fields[name] = NAMED_NETWORK.sub("", self.fields[name])
        for kind, network in NAMED_NETWORK.findall(texts):
            name = network.partition(":")[0]
            if kind == "hypernet":
                self.notes.append(f"the hypernetwork {shown(name)} is not applied")
                continue
            try:
                _, scale, text_scale = parse_network(network)
            except ValueError:
                self.loras.append((name, None))
                continue
            self.loras.append((name, scale))
            if text_scale != scale:
                self.text_scales[name] = text_scale

    def _sampler(self, by_sd2rt: bool) -> None:
        label, schedule = self._take("Sampler"), self._take("Schedule type")
        spacing, grid = self._take("Spacing"), self._take("Grid")
        for name, value in _DEFAULTS.items():
            if self._values.get(name) == f"{value:g}":
                del self._values[name]
        if label is None:
            self.note_ignored("Schedule type", schedule)
            return
        match = _VERSION.match(self._values.get("Version", ""))
        version = None if match is None else (int(match[1]), int(match[2]))
        if schedule is None and version is not None and version >= _SCHEDULE_TYPES_SINCE:
            schedule = "Automatic"
        found = find_sampler(label, schedule, spacing, own_grid=by_sd2rt and grid != "a1111")
        if found is None:
            name, combined = split_schedule(label)
            reason = NOT_REPRODUCED.get(name)
            problem = "is unknown" if reason is None else f"is not supported ({reason})"
            self.notes.append(f"Sampler {shown(label)} {problem}: the bundle's default is used")
            if schedule is None or schedule.casefold() == "automatic":
                schedule = combined
            self.note_ignored("Schedule type", schedule)
            return
        self.fields |= found.fields
        if found.grid == "diffusers" and not by_sd2rt:
            self.notes.append(
                f"Sampler {shown(label)} is not AUTOMATIC1111's own: noise levels and timesteps may differ"
            )
        if found.sampler in _LISTED and version is not None and version < _TIMESTEPS_SINCE:
            self.notes.append(
                f"Sampler {shown(label)} of versions before 1.6 had other timesteps: those of later ones are used"
            )
        if found.missing is not None:
            self.notes.append(
                f"Schedule type {shown(found.missing)} is not available for {found.sampler}: its default is used"
            )

    def _numbers(self, hires: bool) -> None:
        self._number("Steps", "num_inference_steps", int)
        self._number("CFG scale", "guidance_scale", float)
        self._number("CFG rescale", "guidance_rescale", float)
        self._number("Seed", "seed", int)
        if not hires:
            self._number("Denoising strength", "strength", float)
        for key in ("Eta DDIM", "Eta"):
            if self.fields.get("sampler") == "ddim":
                self._number(key, "eta", float)
        size = self._take("Size")
        if size is not None:
            width, _, height = size.partition("x")
            self.add_size("Size", width, height)

    def _masked_area(self) -> None:
        if self.masked and self._values.get("Inpaint area") == "Only masked":
            del self._values["Inpaint area"]
            self.fields["only_masked"] = True
            self._number("Masked area padding", "mask_padding", int)

    def _number(self, key: str, name: str, parse: Callable[[str], Any]) -> None:
        self.add_number(key, name, self._take(key), parse)

    def _noise(self) -> None:
        source = self._take("RNG")
        self._no_source = source is None
        rng = "cpu" if source is not None and source.upper() == "CPU" else "cuda"
        if source is not None and source.upper() not in ("CPU", "GPU", "NV"):
            self.notes.append(f"RNG {shown(source)} is unknown: a GPU's generator is used")
        self.fields["rng"] = rng
        seed, strength = self._take("Variation seed"), self._take("Variation seed strength")
        if seed is None or strength is None:
            return
        try:
            variation = {"variation_seed": int(seed), "variation_strength": float(strength)}
            Request.model_validate({"prompt": "", **variation})
        except ValueError:
            self.notes.append(
                f"Variation seed {shown(seed)}, strength {shown(strength)} is not valid and is ignored"
            )
            return
        self.fields |= variation
        if variation["variation_strength"] not in (0, 1):
            self.notes.append(
                "the variation only approximates the original: AUTOMATIC1111 interpolates each column of the "
                "noise separately"
            )

    def _resources(self) -> None:
        """Models and LoRAs of Civitai's generator, which names them by their numbers and titles there."""
        text = self._take("Civitai resources")
        if text is None:
            return
        if self._no_source:
            # Its generator runs ComfyUI, whose numbers are the CPU's.
            self.fields["rng"] = "cpu"
        try:
            resources = parse_json(text)
        except ValueError:
            resources = None
        if not isinstance(resources, list):
            self.note_ignored("Civitai resources", text)
            return
        for resource in resources:
            entry = resource if isinstance(resource, dict) else {}
            kind, name, weight = str(entry.get("type")), entry.get("modelName"), entry.get("weight", 1)
            if not isinstance(name, str):
                self.note_ignored("Civitai resource", entry.get("modelVersionId", kind))
            elif kind == "checkpoint":
                self.model = self.model or name
            elif kind in ("lora", "lycoris", "dora", "locon"):
                number = isinstance(weight, int | float) and not isinstance(weight, bool)
                self.loras.append((name, float(weight) if number else None))
            elif kind in ("embed", "textualinversion"):
                self.embeddings.append(name)
            else:
                self.note_ignored(f"Civitai {kind}", name)

    def _clip_skip(self, by_sd2rt: bool) -> None:
        value = self._take("Clip skip")
        # AUTOMATIC1111 ignores this setting for SD2. Forge, whose versions begin with f, applies it.
        if value is None or not (by_sd2rt or self._values.get("Version", "").startswith("f")):
            return
        if not value.isdecimal() or len(value) > 2 or int(value) < 1:
            self.notes.append(f"Clip skip {shown(value)} is not a valid value and is ignored")
        elif int(value) > 1:
            # AUTOMATIC1111's 1 ends at the last layer; clip_skip counts the skipped layers.
            self.fields["clip_skip"] = int(value) - 1
