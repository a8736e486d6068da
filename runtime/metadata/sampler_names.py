"""AUTOMATIC1111's names of samplers and schedules, and what they are here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sd2rt.engines.bundle.sampler_config import SamplerName, schedules_of

SAMPLERS: dict[SamplerName, str] = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "pndm": "PLMS",
    "lms": "LMS",
    "euler": "Euler",
    "euler-a": "Euler a",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm2-a": "DPM2 a",
    "dpmpp-2m": "DPM++ 2M",
    "dpmpp-2m-sde": "DPM++ 2M SDE",
    "dpmpp-sde": "DPM++ SDE",
    "deis": "DEIS",
    "unipc": "UniPC",
    "lcm": "LCM",
}
"""Names of samplers in AUTOMATIC1111 or one of its forks."""

UNNAMED_SAMPLERS: tuple[SamplerName, ...] = ("dpmpp-2s", "ipndm", "sa-solver", "tcd")
"""Samplers unknown to AUTOMATIC1111, written with their sd2rt names. Its DPM++ 2S a adds noise, dpmpp-2s does not."""

SCHEDULES: dict[str, str] = {
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "ays": "Align Your Steps",
}
"""Names of schedule types in AUTOMATIC1111. Timestep spacings are written to a separate field, ``Spacing``."""

SCHEDULE_NAMES: dict[str, tuple[str, str]] = {
    "uniform": ("Uniform", "linspace"),
    "karras": ("Karras", "karras"),
    "exponential": ("Exponential", "exponential"),
    "sgm_uniform": ("SGM Uniform", "trailing"),
    "align_your_steps": ("Align Your Steps", "ays"),
    "simple": ("Simple", "trailing"),
    "normal": ("Normal", "linspace"),
    "ddim": ("DDIM", "leading"),
    "beta": ("Beta", "beta"),
    "turbo": ("Turbo", "trailing"),
}
"""Label and own schedule of each schedule type, by the name that its API has. Spacings have the same timesteps,
exactly or nearly."""

_BY_LABEL: dict[str, SamplerName] = {label.casefold(): name for name, label in SAMPLERS.items()}
_BY_LABEL |= {name: name for name in (*SAMPLERS, *UNNAMED_SAMPLERS)}
_SCHEDULE_OF = {name: own for name, (_, own) in SCHEDULE_NAMES.items()}
_SCHEDULE_OF |= {label.casefold(): own for label, own in SCHEDULE_NAMES.values()}

_SPACINGS = {"ddim": "leading", "pndm": "leading", "unipc": "leading", "lcm": None, "ddpm": None}
"""Spacing that AUTOMATIC1111 uses if no schedule type is given; samplers not listed here use linspace."""

_AUTOMATIC: dict[SamplerName, str] = {
    "dpmpp-2m": "karras",
    "dpmpp-sde": "karras",
    "dpmpp-2m-sde": "exponential",
    "dpm2": "karras",
    "dpm2-a": "karras",
}
"""Schedule that newer versions of AUTOMATIC1111 use for the schedule type "Automatic"."""


@dataclass(frozen=True, slots=True)
class FoundSampler:
    """A sampler of this runtime's, found by AUTOMATIC1111's names."""

    sampler: SamplerName
    schedule: str | None
    """One that the sampler has; None for its default."""
    missing: str | None = None
    """Schedule that was named, and that the sampler does not have."""
    options: dict[str, Any] = field(default_factory=dict)


def find_sampler(label: str, schedule: str | None, spacing: str | None = None) -> FoundSampler | None:
    """Find a sampler by its name, and its schedule; None if there is no such sampler.

    Args:
        label: name of the sampler, as in ``DPM++ 2M`` or, from old versions, ``DPM++ 2M Karras``.
        schedule: name or label of the schedule type; ``Automatic`` leaves it to the sampler.
        spacing: own name of a spacing, which comes before the schedule.
    """
    name, combined = split_schedule(label)
    automatic = schedule is not None and schedule.casefold() == "automatic"
    if schedule is None or automatic:
        schedule = combined
    options: dict[str, Any] = {}
    if name.endswith(" heun") and name.removesuffix(" heun") in _BY_LABEL:
        name = name.removesuffix(" heun")
        options = {"solver_type": "heun"}
    sampler = _BY_LABEL.get(name)
    if sampler is None:
        return None
    if spacing is not None:
        chosen: str | None = spacing
    elif schedule is None:
        chosen = _AUTOMATIC.get(sampler) if automatic else None
        chosen = _SPACINGS.get(sampler, "linspace") if chosen is None else chosen
    else:
        chosen = find_schedule(schedule)
    if chosen in schedules_of(sampler):
        return FoundSampler(sampler, chosen, options=options)
    named = schedule is not None or spacing is not None
    return FoundSampler(sampler, None, chosen if named else None, options)


def find_schedule(name: str) -> str:
    """Return the own name of a schedule type; an unknown one as it is."""
    return _SCHEDULE_OF.get(name.casefold(), name)


def split_schedule(label: str) -> tuple[str, str | None]:
    """Split off the schedule that old versions appended to the sampler's name, as in DPM++ 2M Karras."""
    name = label.strip().casefold()
    for schedule in ("karras", "exponential"):
        if name.endswith(f" {schedule}"):
            return name.removesuffix(f" {schedule}"), schedule
    return name, None
