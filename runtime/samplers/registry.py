"""Registry of samplers and schedules by name, and the configuration of a request's sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

import numpy as np
from pydantic import ValidationError

from sd2rt.engines.bundle.sampler_config import (
    CHOICES,
    SAMPLER_OPTIONS,
    SCHEDULES,
    A1111Schedule,
    NoiseConfig,
    SamplerConfig,
    SamplerName,
    a1111_schedules_of,
    default_sampler,
    schedules_of,
)
from sd2rt.engines.errors import RequestError
from sd2rt.engines.near_matches import did_you_mean
from sd2rt.engines.printable import repr_of, shown
from sd2rt.runtime.samplers.a1111.facts import FACTS
from sd2rt.runtime.samplers.a1111.lcm import lcm as a1111_lcm
from sd2rt.runtime.samplers.a1111.plms import plms
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
from sd2rt.runtime.samplers.methods.k_diffusion.dpm_2s_ancestral import dpm_2s_ancestral
from sd2rt.runtime.samplers.methods.k_diffusion.dpm_3m_sde import dpm_3m_sde
from sd2rt.runtime.samplers.methods.k_diffusion.dpm_fast import dpm_fast
from sd2rt.runtime.samplers.methods.k_diffusion.restart import restart
from sd2rt.runtime.samplers.methods.lcm import lcm
from sd2rt.runtime.samplers.methods.lms import lms
from sd2rt.runtime.samplers.methods.pndm import pndm
from sd2rt.runtime.samplers.methods.sa_solver import sa_solver
from sd2rt.runtime.samplers.methods.tcd import tcd
from sd2rt.runtime.samplers.methods.unipc import unipc
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan

_EXTREME = "use less extreme sigmas, sampler options or betas"
Make = Callable[[NoiseSchedule, SamplerConfig, SamplingOptions], Plan]


@dataclass(frozen=True, slots=True)
class Sampler:
    """Description of a sampling method."""

    make: Make
    title: str
    paper: str
    """Source: an arXiv number, or a code base if there is no paper."""
    order: str
    """Measured order of convergence, by its options (tests/runtime/samplers/test_convergence.py); with fresh noise,
    that of mean and standard deviation."""
    evaluations: int = 1
    """Network calls per requested step."""
    noise: str = "no"
    """Use of fresh noise: "yes", "no", or the condition for it."""


SAMPLERS: dict[SamplerName, Sampler] = {
    "ddim": Sampler(ddim, "DDIM", "arXiv:2010.02502", "1", noise="with eta"),
    "ddpm": Sampler(ddpm, "DDPM", "arXiv:2006.11239", "1", noise="yes"),
    "pndm": Sampler(pndm, "PNDM (PLMS)", "arXiv:2202.09778", "2"),
    "lms": Sampler(lms, "linear multistep", "k-diffusion", "1-4"),
    "euler": Sampler(euler, "Euler", "arXiv:2206.00364", "1", noise="with s_churn"),
    "euler-a": Sampler(euler_ancestral, "Euler ancestral", "k-diffusion", "1", noise="yes"),
    "heun": Sampler(heun, "Heun", "arXiv:2206.00364", "2", evaluations=2),
    "restart": Sampler(restart, "Restart", "arXiv:2306.14878", "2", evaluations=2, noise="from 20 steps on"),
    "dpm2": Sampler(dpm2, "DPM-Solver-2", "arXiv:2206.00927", "2", evaluations=2),
    "dpm2-a": Sampler(
        dpm2_ancestral, "DPM-Solver-2 ancestral", "k-diffusion", "2", evaluations=2, noise="yes"
    ),
    "dpmpp-2s": Sampler(
        dpm_singlestep, "DPM-Solver++ single-step", "arXiv:2211.01095", "1-3", noise="with an SDE form"
    ),
    "dpmpp-2s-a": Sampler(
        dpm_2s_ancestral,
        "DPM-Solver++ single-step, ancestral",
        "k-diffusion",
        "2",
        evaluations=2,
        noise="yes",
    ),
    "dpmpp-2m": Sampler(dpm_multistep, "DPM-Solver++ multistep", "arXiv:2211.01095", "1-2"),
    "dpmpp-2m-sde": Sampler(
        dpm_multistep, "DPM-Solver++ multistep, SDE", "arXiv:2211.01095", "1-2", noise="yes"
    ),
    "dpmpp-3m-sde": Sampler(dpm_3m_sde, "DPM-Solver++(3M), SDE", "k-diffusion", "2", noise="yes"),
    "dpmpp-sde": Sampler(dpm_sde, "DPM-Solver++ for the SDE", "k-diffusion", "2", evaluations=2, noise="yes"),
    "dpm-fast": Sampler(dpm_fast, "DPM-Solver-fast", "arXiv:2206.00927", "3", noise="with eta"),
    "deis": Sampler(deis, "DEIS", "arXiv:2204.13902", "1-3"),
    "unipc": Sampler(unipc, "UniPC", "arXiv:2302.04867", "2-4"),
    "ipndm": Sampler(ipndm, "improved PNDM", "arXiv:2204.13902", "1-2"),
    "sa-solver": Sampler(sa_solver, "SA-Solver", "arXiv:2309.05019", "1-3", noise="yes"),
    "lcm": Sampler(lcm, "latent consistency model", "arXiv:2310.04378", "-", noise="yes"),
    "tcd": Sampler(tcd, "trajectory consistency model", "arXiv:2402.19159", "-", noise="with eta"),
}

_A1111_METHODS: dict[SamplerName, Make] = {"pndm": plms, "lcm": a1111_lcm}
"""Samplers of which AUTOMATIC1111 has another form; of the others it only has other grids."""


def make_plan(noise: NoiseConfig, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """Make the plan of the configured sampler; plans are cached and read-only.

    Raises:
        RequestError: the sampler does not support an option.
    """
    return _plan(noise, config, options)


@lru_cache(maxsize=256)
def _plan(noise: NoiseConfig, config: SamplerConfig, options: SamplingOptions) -> Plan:
    try:
        # Warnings of NumPy do not say which option is at fault; numbers that are not finite are found in the plan.
        with np.errstate(all="ignore"):
            plan = _method(config.name, options)(_schedule(noise), config, options)
    except ArithmeticError as error:
        raise RequestError(f"{config.name} cannot compute its steps ({error}): {_EXTREME}") from None
    if not plan.finite:
        raise RequestError(f"{config.name} would take steps that are not finite: {_EXTREME}")
    return plan


def _method(name: SamplerName, options: SamplingOptions) -> Make:
    usual = SAMPLERS[name].make
    return usual if options.a1111 is None else _A1111_METHODS.get(name, usual)


@lru_cache(maxsize=8)
def _schedule(noise: NoiseConfig) -> NoiseSchedule:
    schedule = NoiseSchedule(noise)
    if not (np.isfinite(schedule.log_sigmas).all() and np.isfinite(schedule.betas).all()):
        raise RequestError(
            f"the noise schedule of betas {noise.beta_start:g} to {noise.beta_end:g} has levels that are not "
            "finite: use another bundle, or leave out rescale_betas_zero_snr"
        )
    return schedule


def sampler_config(
    name: str | None = None,
    base: SamplerConfig | None = None,
    schedule: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> SamplerConfig:
    """Configure the sampler that a request names, for a checkpoint whose configuration is ``base``.

    Like ``Scheduler.from_config(pipe.scheduler.config)`` in diffusers: options that both samplers have carry over,
    except those that the checkpoint leaves to its scheduler's default, which get the new scheduler's default. A base
    does not record which options are defaults, so options at their sampler's default value count as such. Without a
    base nothing carries over; without a name, or with the base's name, everything does. ``schedule`` and ``options``
    override the result.

    Raises:
        RequestError: there is no such sampler, or it does not have the schedule or an option.
    """
    sampler = base.name if name is None and base is not None else _sampler_name(name)
    valid_options = SAMPLER_OPTIONS[sampler]
    if base is None:
        config = default_sampler(sampler)
    elif sampler == base.name:
        config = base
    else:
        defaults = SAMPLER_OPTIONS[base.name]
        carried = {
            option: getattr(base, option)
            for option, value in defaults.items()
            if option in valid_options
            and getattr(base, option) != value
            and option not in _sampler_specific_options(sampler, base.name)
        }
        config = default_sampler(sampler, steps_offset=base.steps_offset, **carried)
    changes: dict[str, Any] = {}
    if schedule is not None:
        changes |= _schedule_changes(sampler, schedule)
    for option, value in (options or {}).items():
        if option not in valid_options and option != "steps_offset":
            listed = f"it has {', '.join(valid_options)}" if valid_options else "it has no options"
            raise RequestError(f"{sampler} has no option {option}: {listed}")
        changes[option] = _convert_option(sampler, option, value)
    return _changed(config, changes) if changes else config


def a1111_config(
    name: str, schedule: A1111Schedule, options: Mapping[str, Any] | None = None
) -> SamplerConfig:
    """Configure a sampler like AUTOMATIC1111's of that name; nothing carries over from the checkpoint.

    Raises:
        RequestError: AUTOMATIC1111 has no such sampler, or does not have the schedule type or an option for it.
    """
    sampler = _sampler_name(name)
    check_a1111_schedule(sampler, schedule)
    facts = FACTS[sampler]
    changes = dict(facts.options)
    if schedule == "kl-optimal" and "final_sigmas_type" in SAMPLER_OPTIONS[sampler]:
        changes["final_sigmas_type"] = "sigma_min"
    for option, value in (options or {}).items():
        if option not in facts.free_options:
            there = ", ".join(facts.free_options)
            raise RequestError(
                f"{sampler} with the grid a1111 has no option {option}: "
                + (f"it has {there}" if there else "leave it out")
            )
        changes[option] = _convert_option(sampler, option, value)
    return _changed(default_sampler(sampler), changes)


def check_a1111_schedule(sampler: SamplerName | None, schedule: str) -> A1111Schedule:
    """Check that AUTOMATIC1111 has a schedule type, and has it for a sampler if one is named.

    Raises:
        RequestError: it does not.
    """
    known = get_args(A1111Schedule)
    if schedule not in known:
        raise RequestError(f"the grid a1111 has no schedule {schedule!r}: choose one of {', '.join(known)}")
    checked: A1111Schedule = next(each for each in known if each == schedule)
    try:
        supported = known if sampler is None else a1111_schedules_of(sampler)
    except ValueError as error:
        raise RequestError(str(error)) from None
    if schedule not in supported:
        raise RequestError(
            f"{sampler} has no schedule types in the grid a1111, which lists its timesteps: leave the schedule out"
        )
    return checked


def _changed(config: SamplerConfig, changes: dict[str, Any]) -> SamplerConfig:
    try:
        return SamplerConfig.model_validate(config.model_dump() | changes, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise RequestError(
            f"sampler option {name} is {shown(repr_of(first['input']))}: {reason}" if name else reason
        ) from None


def _convert_option(sampler: SamplerName, option: str, value: Any) -> Any:
    """Convert a request's value to the type of the configuration.

    Raises:
        RequestError: the sampler does not accept the value.
    """
    if option in _LIST_OPTIONS:
        return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, int) else value
    allowed = CHOICES.get(sampler, {}).get(option)
    if allowed is not None and value not in allowed:
        choices = ", ".join(str(choice) for choice in allowed)
        raise RequestError(f"{option} of {sampler} is {value}: choose one of {choices}")
    return value


_LIST_OPTIONS = {"disable_corrector"}


def _sampler_specific_options(*samplers: SamplerName) -> set[str]:
    """Options that do not carry over between these samplers, because their values differ in meaning.

    diffusers resets them to the new scheduler's default, or has them under another name.
    """
    options = {"solver_type", "algorithm_type"}
    if any(name in ("lms", "ipndm", "sa-solver") for name in samplers):
        options.add("solver_order")
    return options


def _sampler_name(name: str | None) -> SamplerName:
    sampler = next((candidate for candidate in SAMPLERS if candidate == name), None)
    if sampler is None:
        near = did_you_mean(repr_of(name), SAMPLERS)
        raise RequestError(f"no sampler is named {name!r}: {near}choose one of {', '.join(SAMPLERS)}")
    return sampler


def choices_of(sampler: SamplerName) -> dict[str, tuple[Any, ...]]:
    """List the valid values of options that are limited to a few words or orders."""
    choices = {}
    for option in SAMPLER_OPTIONS[sampler]:
        words = get_args(SamplerConfig.model_fields[option].annotation)
        if all(isinstance(word, str) for word in words) and words:
            choices[option] = words
    return choices | CHOICES.get(sampler, {})


def _schedule_changes(sampler: SamplerName, schedule: str) -> dict[str, Any]:
    if schedule not in SCHEDULES:
        near = did_you_mean(repr_of(schedule), SCHEDULES)
        raise RequestError(f"no schedule is named {schedule!r}: {near}choose one of {', '.join(SCHEDULES)}")
    supported = schedules_of(sampler)
    if schedule not in supported:
        remedy = (
            f"choose one of {', '.join(supported)}"
            if supported
            else "leave it out, the sampler chooses its own timesteps"
        )
        raise RequestError(f"{sampler} has no schedule {schedule}: {remedy}")
    changes = SCHEDULES[schedule]
    return {"levels": "spaced", **changes} if "levels" in SAMPLER_OPTIONS[sampler] else dict(changes)
