"""Facts about AUTOMATIC1111's samplers that decide on their grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sd2rt.engines.bundle.sampler_config import A1111Schedule, SamplerName


@dataclass(frozen=True, slots=True)
class Facts:
    """One sampler: its schedule type, and the options with which sd2rt's sampler is the same method."""

    automatic: A1111Schedule = "uniform"
    """Schedule type that ``automatic`` stands for."""
    drops_next_to_last: bool = False
    """The schedule is made for one step more, and the level before the last one is left out."""
    options: Mapping[str, Any] = field(default_factory=dict)
    free_options: tuple[str, ...] = ()
    """Options that AUTOMATIC1111 has too, so that a request may set them."""


FACTS: dict[SamplerName, Facts] = {
    "dpmpp-2m": Facts("karras", options={"lower_order_final": False}),
    "dpmpp-sde": Facts("karras"),
    "dpmpp-2m-sde": Facts("exponential", options={"lower_order_final": False}, free_options=("solver_type",)),
    "dpmpp-2s-a": Facts("karras"),
    "dpmpp-3m-sde": Facts("exponential", drops_next_to_last=True),
    "euler-a": Facts(),
    "euler": Facts(),
    "lms": Facts(),
    "heun": Facts(),
    "dpm2": Facts("karras", drops_next_to_last=True),
    "dpm2-a": Facts("karras", drops_next_to_last=True),
    "dpm-fast": Facts(),
    "restart": Facts("karras"),
    "lcm": Facts(),
    "ddim": Facts(),
    "pndm": Facts(),
    "unipc": Facts(
        options={"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        free_options=("solver_order", "solver_type", "lower_order_final"),
    ),
}

TIMESTEP_SAMPLERS: frozenset[SamplerName] = frozenset(("ddim", "pndm", "unipc"))
"""Samplers that are not k-diffusion's: they show the network the area that a mask keeps without noise."""
