"""Settings that few-step models are made for, by name: they fill what a request leaves open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PresetName = Literal["turbo", "lcm"]


@dataclass(frozen=True, slots=True)
class Preset:
    """What comes before the bundle's defaults and after what a request says."""

    sampler: str
    schedule: str | None  # None is the sampler's usual one
    num_inference_steps: int
    guidance_scale: float  # 1 or less: one row a step
    late_start: tuple[int, float] | None = None
    """Steps and strength where an image is started from, if they are others."""


PRESETS: dict[PresetName, Preset] = {
    # SD-Turbo (arXiv:2311.17042) was distilled for one step from pure noise, which trailing timesteps start
    # at, without guidance. One step cannot start late: of two, the second half is taken.
    "turbo": Preset("euler", "trailing", 1, 0.0, late_start=(2, 0.5)),
    # Weights with an LCM-LoRA (arXiv:2311.05556) in them: guidance was distilled into what the network
    # predicts, and its authors switch classifier-free guidance off with a scale of 1, or keep it below 2. The
    # scales of 7 to 9 that are given to LCMs proper (arXiv:2310.04378) are another number: an input of their
    # UNet, which SD2's does not have.
    "lcm": Preset("lcm", None, 4, 1.0),
}
