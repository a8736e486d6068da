"""What a bundle says about noise and sampling: the numbers that export writes and the runtime's samplers read."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sd2rt.engines.errors import RequestError

STATE_SLOTS = 5
"""Latents that a sample's state carries, K + 1: what is being denoised and what the sampler remembers."""

SIZE_MULTIPLE = 64
LARGEST_SIDE = 4096

PredictionType = Literal["epsilon", "v_prediction"]
Spacing = Literal["leading", "trailing", "linspace"]
SamplerName = Literal["ddim", "pndm", "euler", "dpmpp-2m"]


class NoiseConfig(BaseModel):
    """The forward process that a checkpoint was trained with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_train_timesteps: int = Field(ge=1)
    beta_start: float = Field(gt=0, lt=1)
    beta_end: float = Field(gt=0, lt=1)
    beta_schedule: Literal["linear", "scaled_linear"]
    prediction_type: PredictionType


class SamplerConfig(BaseModel):
    """One sampler and the options that its table depends on; a checkpoint's own one is the bundle's default.

    Every option is stated: none has a default here, so that a manifest says all that a table was made from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: SamplerName
    spacing: Spacing
    steps_offset: int = Field(ge=0)
    set_alpha_to_one: bool
    """ddim, pndm: what follows the last step is noise-free, rather than as noisy as timestep 0."""
    final_sigma: Literal["zero", "sigma_min"]
    """euler, dpmpp-2m: the noise level that the last step leaves."""
    lower_order_final: bool
    """dpmpp-2m: the last of fewer than 15 steps is of first order."""
    solver_type: Literal["midpoint", "heun"]
    """dpmpp-2m: how its second-order term is formed."""


def check_side(name: str, side: int) -> None:
    """Refuse a side in pixels that is not a multiple of 64, naming the valid ones next to it.

    Raises:
        RequestError: it is not, or is out of range.
    """
    if SIZE_MULTIPLE <= side <= LARGEST_SIDE and side % SIZE_MULTIPLE == 0:
        return
    below = min(max(side // SIZE_MULTIPLE * SIZE_MULTIPLE, SIZE_MULTIPLE), LARGEST_SIDE)
    above = min(below + SIZE_MULTIPLE, LARGEST_SIDE)
    near = f"{below} or {above}" if below < side < above else f"{below}"
    raise RequestError(
        f"{name} {side} is not a multiple of {SIZE_MULTIPLE} from {SIZE_MULTIPLE} to {LARGEST_SIDE}: use {near}"
    )
