"""AUTOMATIC1111's names of samplers and schedules, and what they are here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sd2rt.engines.bundle.sampler_config import (
    A1111_SCHEDULES,
    A1111Schedule,
    GridName,
    SamplerName,
    schedules_of,
)

SAMPLERS: dict[SamplerName, str] = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "pndm": "PLMS",
    "lms": "LMS",
    "euler": "Euler",
    "euler-a": "Euler a",
    "heun": "Heun",
    "restart": "Restart",
    "dpm2": "DPM2",
    "dpm2-a": "DPM2 a",
    "dpmpp-2s-a": "DPM++ 2S a",
    "dpmpp-2m": "DPM++ 2M",
    "dpmpp-2m-sde": "DPM++ 2M SDE",
    "dpmpp-3m-sde": "DPM++ 3M SDE",
    "dpmpp-sde": "DPM++ SDE",
    "dpm-fast": "DPM fast",
    "deis": "DEIS",
    "unipc": "UniPC",
    "lcm": "LCM",
}
"""Names of samplers in AUTOMATIC1111 or one of its forks."""

UNNAMED_SAMPLERS: tuple[SamplerName, ...] = ("dpmpp-2s", "ipndm", "sa-solver", "tcd")
"""Samplers unknown to AUTOMATIC1111, written with their sd2rt names."""

SCHEDULES: dict[str, str] = {
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "ays": "Align Your Steps",
}
"""AUTOMATIC1111's names for schedules of the grid diffusers. Spacings are written to another field, ``Spacing``."""

SCHEDULE_NAMES: dict[str, tuple[str, A1111Schedule]] = {
    "uniform": ("Uniform", "uniform"),
    "karras": ("Karras", "karras"),
    "exponential": ("Exponential", "exponential"),
    "polyexponential": ("Polyexponential", "polyexponential"),
    "sgm_uniform": ("SGM Uniform", "sgm-uniform"),
    "kl_optimal": ("KL Optimal", "kl-optimal"),
    "align_your_steps": ("Align Your Steps", "ays"),
    "simple": ("Simple", "simple"),
    "normal": ("Normal", "normal"),
    "ddim": ("DDIM", "ddim"),
    "beta": ("Beta", "beta"),
}
"""Label of each schedule type and its name in the grid a1111, by the name that its API has."""

NOT_REPRODUCED = {
    "dpm adaptive": "it chooses its steps by the image",
    "ddim cfg++": "it uses the output for the negative prompt by itself",
}
"""Samplers of AUTOMATIC1111 that sd2rt does not have, with the reason."""

_BY_LABEL: dict[str, SamplerName] = {label.casefold(): name for name, label in SAMPLERS.items()}
_BY_LABEL |= {name: name for name in (*SAMPLERS, *UNNAMED_SAMPLERS)}
_SCHEDULE_TYPES: dict[str, A1111Schedule] = {"automatic": "automatic"}
for _name, (_label, _own) in SCHEDULE_NAMES.items():
    _SCHEDULE_TYPES |= {_name: _own, _label.casefold(): _own, _own: _own}
# Names in a fork for the same rules.
_SCHEDULE_TYPES |= {"sgmuniform": "sgm-uniform", "align your steps 11": "ays"}
_OWN_SCHEDULES = {label.casefold(): name for name, label in SCHEDULES.items()}


@dataclass(frozen=True, slots=True)
class FoundSampler:
    """A sampler of this runtime's, found by AUTOMATIC1111's names."""

    sampler: SamplerName
    schedule: str | None
    """One that the sampler has; None for its default."""
    missing: str | None = None
    """Schedule that was named, and that the sampler does not have."""
    options: dict[str, Any] = field(default_factory=dict)
    grid: GridName = "a1111"

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of a request."""
        chosen: dict[str, Any] = {"sampler": self.sampler}
        if self.schedule is not None:
            chosen["schedule"] = self.schedule
        if self.grid != "diffusers":
            chosen["grid"] = self.grid
        return chosen | ({"sampler_options": self.options} if self.options else {})


def find_sampler(
    label: str, schedule: str | None, spacing: str | None = None, *, own_grid: bool = False
) -> FoundSampler | None:
    """Find a sampler by its name, and its schedule; None if there is no such sampler.

    Samplers that AUTOMATIC1111 has get its grid, others that of diffusers.

    Args:
        label: name of the sampler, as in ``DPM++ 2M`` or, from old versions, ``DPM++ 2M Karras``.
        schedule: name or label of the schedule type; ``Automatic`` leaves it to the sampler. None, as in old
            versions, is the schedule in the sampler's name, or Uniform.
        spacing: own name of a spacing, which comes before the schedule.
        own_grid: use the grid of diffusers for all samplers.
    """
    name, combined = split_schedule(label)
    if schedule is None or schedule.casefold() == "automatic":
        schedule = combined or schedule
    options: dict[str, Any] = {}
    if name.endswith(" heun") and name.removesuffix(" heun") in _BY_LABEL:
        name = name.removesuffix(" heun")
        options = {"solver_type": "heun"}
    sampler = _BY_LABEL.get(name)
    if sampler is None:
        return None
    if sampler in A1111_SCHEDULES and not own_grid:
        if len(A1111_SCHEDULES[sampler]) == 1:
            # Its timesteps do not depend on the schedule type.
            return FoundSampler(sampler, None, options=options)
        chosen = find_schedule(schedule or "uniform")
        if chosen is None:
            return FoundSampler(sampler, None, schedule, options)
        return FoundSampler(sampler, None if chosen == "automatic" else chosen, options=options)
    wanted = spacing
    if wanted is None and schedule is not None and schedule.casefold() != "automatic":
        wanted = _OWN_SCHEDULES.get(schedule.casefold(), schedule)
    if wanted is None or wanted in schedules_of(sampler):
        return FoundSampler(sampler, wanted, options=options, grid="diffusers")
    return FoundSampler(sampler, None, wanted, options, "diffusers")


def find_schedule(name: str) -> A1111Schedule | None:
    """Return a schedule type of the grid a1111 by its name or label."""
    return _SCHEDULE_TYPES.get(name.casefold())


def split_schedule(label: str) -> tuple[str, str | None]:
    """Split off the schedule that old versions appended to the sampler's name, as in DPM++ 2M Karras."""
    name = label.strip().casefold()
    for schedule in ("karras", "exponential"):
        if name.endswith(f" {schedule}"):
            return name.removesuffix(f" {schedule}"), schedule
    return name, None
