"""Named settings for few-step models. They replace the bundle's defaults, not values set in the request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PresetName = Literal["turbo", "lcm"]


@dataclass(frozen=True, slots=True)
class Preset:
    """Defaults for a few-step model. They override the bundle's defaults; a request overrides them."""

    sampler: str
    schedule: str | None  # None: the sampler's default
    num_inference_steps: int
    guidance_scale: float  # 1 or less turns guidance off, which halves the batch of each call
    late_start: tuple[int, float] | None = None
    """Number of steps and strength for image-to-image, if they differ from text-to-image."""


PRESETS: dict[PresetName, Preset] = {
    # SD-Turbo (arXiv:2311.17042) was distilled for a single step without guidance, starting from pure noise:
    # the first of the trailing timesteps. Image-to-image needs a later start, so it runs the second of two steps.
    "turbo": Preset("euler", "trailing", 1, 0.0, late_start=(2, 0.5)),
    # For weights with a merged LCM-LoRA (arXiv:2311.05556). Guidance is distilled into the network's prediction;
    # the authors turn classifier-free guidance off (scale 1) or keep it below 2. The scales of 7 to 9 used with
    # full LCMs (arXiv:2310.04378) are a different quantity: an input of their UNet, which SD2's UNet lacks.
    "lcm": Preset("lcm", None, 4, 1.0),
}
