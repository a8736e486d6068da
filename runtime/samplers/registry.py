"""Choosing a sampler by its name, and what there is to know of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

from pydantic import ValidationError

from sd2rt.engines.bundle.sampler_config import (
    CHOICES,
    SAMPLER_OPTIONS,
    Levels,
    NoiseConfig,
    SamplerConfig,
    SamplerName,
    Spacing,
    default_sampler,
)
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers.methods.ddim import ddim
from sd2rt.runtime.samplers.methods.ddpm import ddpm
from sd2rt.runtime.samplers.methods.deis import deis
from sd2rt.runtime.samplers.methods.dpm2 import dpm2, dpm2_ancestral
from sd2rt.runtime.samplers.methods.dpm_multistep import dpm_multistep
from sd2rt.runtime.samplers.methods.dpm_sde import dpm_sde
from sd2rt.runtime.samplers.methods.dpm_singlestep import dpm_singlestep
from sd2rt.runtime.samplers.methods.euler import euler, euler_ancestral
from sd2rt.runtime.samplers.methods.heun import heun
from sd2rt.runtime.samplers.methods.ipndm import ipndm
from sd2rt.runtime.samplers.methods.lcm import lcm
from sd2rt.runtime.samplers.methods.lms import lms
from sd2rt.runtime.samplers.methods.pndm import pndm
from sd2rt.runtime.samplers.methods.sa_solver import sa_solver
from sd2rt.runtime.samplers.methods.tcd import tcd
from sd2rt.runtime.samplers.methods.unipc import unipc
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan

Make = Callable[[NoiseSchedule, SamplerConfig, SamplingOptions], Plan]


@dataclass(frozen=True, slots=True)
class Sampler:
    """One method, as the field knows it."""

    make: Make
    title: str
    paper: str
    """Where it comes from: an arXiv number, or a code base where there is no paper."""
    order: str
    """Of convergence, as its options choose it: measured (tests/runtime/samplers/test_convergence.py), with fresh
    noise that of mean and deviation."""
    evaluations: int = 1
    """Network calls for each step asked for."""
    noise: str = "no"
    """Whether fresh noise is drawn on the way, or what makes it be."""


SAMPLERS: dict[SamplerName, Sampler] = {
    "ddim": Sampler(ddim, "DDIM", "arXiv:2010.02502", "1", noise="with eta"),
    "ddpm": Sampler(ddpm, "DDPM", "arXiv:2006.11239", "1", noise="yes"),
    "pndm": Sampler(pndm, "PNDM (PLMS)", "arXiv:2202.09778", "2"),
    "lms": Sampler(lms, "linear multistep", "k-diffusion", "1-4"),
    "euler": Sampler(euler, "Euler", "arXiv:2206.00364", "1", noise="with s_churn"),
    "euler-a": Sampler(euler_ancestral, "Euler ancestral", "k-diffusion", "1", noise="yes"),
    "heun": Sampler(heun, "Heun", "arXiv:2206.00364", "2", evaluations=2),
    "dpm2": Sampler(dpm2, "DPM-Solver-2", "arXiv:2206.00927", "2", evaluations=2),
    "dpm2-a": Sampler(
        dpm2_ancestral, "DPM-Solver-2 ancestral", "k-diffusion", "2", evaluations=2, noise="yes"
    ),
    "dpmpp-2s": Sampler(
        dpm_singlestep, "DPM-Solver++ single-step", "arXiv:2211.01095", "1-3", noise="with an SDE form"
    ),
    "dpmpp-2m": Sampler(dpm_multistep, "DPM-Solver++ multistep", "arXiv:2211.01095", "1-2"),
    "dpmpp-2m-sde": Sampler(
        dpm_multistep, "DPM-Solver++ multistep, SDE", "arXiv:2211.01095", "1-2", noise="yes"
    ),
    "dpmpp-sde": Sampler(dpm_sde, "DPM-Solver++ for the SDE", "k-diffusion", "2", evaluations=2, noise="yes"),
    "deis": Sampler(deis, "DEIS", "arXiv:2204.13902", "1-3"),
    "unipc": Sampler(unipc, "UniPC", "arXiv:2302.04867", "2-4"),
    "ipndm": Sampler(ipndm, "improved PNDM", "arXiv:2204.13902", "1-2"),
    "sa-solver": Sampler(sa_solver, "SA-Solver", "arXiv:2309.05019", "1-3", noise="yes"),
    "lcm": Sampler(lcm, "latent consistency model", "arXiv:2310.04378", "-", noise="yes"),
    "tcd": Sampler(tcd, "trajectory consistency model", "arXiv:2402.19159", "-", noise="with eta"),
}

SCHEDULES: dict[str, dict[str, Spacing | Levels]] = {
    "leading": {"spacing": "leading"},
    "trailing": {"spacing": "trailing"},
    "linspace": {"spacing": "linspace"},
    "karras": {"levels": "karras"},
    "exponential": {"levels": "exponential"},
    "beta": {"levels": "beta"},
    "lambdas": {"levels": "lambdas"},
    "ays": {"levels": "ays"},
}
"""What a request's schedule sets: how timesteps are spaced, or by what other rule noise levels are chosen."""


def make_plan(noise: NoiseConfig, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """The named sampler's plan. It depends on nothing else than these three, is remembered, and is read-only.

    Raises RequestError where the sampler does not support what the options ask.
    """
    return _plan(noise, config, options)


@lru_cache(maxsize=256)
def _plan(noise: NoiseConfig, config: SamplerConfig, options: SamplingOptions) -> Plan:
    return SAMPLERS[config.name].make(_schedule(noise), config, options)


@lru_cache(maxsize=8)
def _schedule(noise: NoiseConfig) -> NoiseSchedule:
    return NoiseSchedule(noise)


def sampler_config(
    name: str | None = None,
    base: SamplerConfig | None = None,
    schedule: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> SamplerConfig:
    """The configuration of a sampler that a request names, on a checkpoint whose own one is ``base``.

    It is what ``Scheduler.from_config(pipe.scheduler.config)`` gives in diffusers: options that both samplers have
    carry over, but for those that the checkpoint left to its scheduler's default, in whose place comes the new
    scheduler's. A base does not say what was left to a default, so its sampler's usual value is taken to be one.
    Without a base there is nothing to carry over; without a name, or with the base's own, all of it stays.
    ``schedule`` and ``options`` override.

    Raises RequestError for a name that is no sampler's, or a schedule or an option that the sampler does not have.
    """
    sampler = base.name if name is None and base is not None else _named(name)
    known = SAMPLER_OPTIONS[sampler]
    if base is None:
        chosen = default_sampler(sampler)
    elif sampler == base.name:
        chosen = base
    else:
        usual = SAMPLER_OPTIONS[base.name]
        kept = {
            option: getattr(base, option)
            for option, value in usual.items()
            if option in known
            and getattr(base, option) != value
            and option not in _own_options(sampler, base.name)
        }
        chosen = default_sampler(sampler, steps_offset=base.steps_offset, **kept)
    changes: dict[str, Any] = {}
    if schedule is not None:
        changes |= _schedule_changes(sampler, schedule)
    for option, value in (options or {}).items():
        if option not in known and option != "steps_offset":
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise RequestError(f"{sampler} has no option {option}: {has}")
        changes[option] = _typed(sampler, option, value)
    if not changes:
        return chosen
    try:
        return SamplerConfig.model_validate(chosen.model_dump() | changes, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise RequestError(
            f"sampler option {where} is {first['input']!r}: {reason}" if where else reason
        ) from None


def _typed(sampler: SamplerName, option: str, value: Any) -> Any:
    """A request's value as the configuration has it.

    Raises RequestError where the sampler takes other values.
    """
    if option in _LISTS:
        return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, int) else value
    allowed = CHOICES.get(sampler, {}).get(option)
    if allowed is not None and value not in allowed:
        shown = ", ".join(str(choice) for choice in allowed)
        raise RequestError(f"{option} of {sampler} is {value}: choose one of {shown}")
    return value


_LISTS = {"disable_corrector"}


def _own_options(*samplers: SamplerName) -> set[str]:
    """Options whose values mean something in one of the samplers only: diffusers rewrites them to the new
    scheduler's, or has them under another name."""
    own = {"solver_type", "algorithm_type"}
    return own | {"solver_order"} if any(name in ("lms", "ipndm", "sa-solver") for name in samplers) else own


def _named(name: str | None) -> SamplerName:
    sampler = next((known for known in SAMPLERS if known == name), None)
    if sampler is None:
        raise RequestError(f"no sampler is named {name!r}: choose one of {', '.join(SAMPLERS)}")
    return sampler


def schedules_of(sampler: SamplerName) -> list[str]:
    """The schedules that a sampler takes; none where it chooses its timesteps itself."""
    known = SAMPLER_OPTIONS[sampler]
    levels = CHOICES.get(sampler, {}).get("levels", get_args(Levels))
    return [
        name
        for name, changes in SCHEDULES.items()
        if changes.keys() <= known.keys() and changes.get("levels", "spaced") in levels
    ]


def choices_of(sampler: SamplerName) -> dict[str, tuple[Any, ...]]:
    """What its options may be, where that is one of a few words or orders."""
    choices = {}
    for option in SAMPLER_OPTIONS[sampler]:
        words = get_args(SamplerConfig.model_fields[option].annotation)
        if all(isinstance(word, str) for word in words) and words:
            choices[option] = words
    return choices | CHOICES.get(sampler, {})


def _schedule_changes(sampler: SamplerName, schedule: str) -> dict[str, Any]:
    if schedule not in SCHEDULES:
        raise RequestError(f"no schedule is named {schedule!r}: choose one of {', '.join(SCHEDULES)}")
    taken = schedules_of(sampler)
    if schedule not in taken:
        remedy = (
            f"choose one of {', '.join(taken)}" if taken else "leave it out, it chooses its own timesteps"
        )
        raise RequestError(f"{sampler} has no schedule {schedule}: {remedy}")
    changes = SCHEDULES[schedule]
    return {"levels": "spaced", **changes} if "levels" in SAMPLER_OPTIONS[sampler] else dict(changes)
