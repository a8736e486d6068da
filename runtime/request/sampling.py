"""Sampler, steps and sampling plan of a request, computed from the manifest without engines."""

from __future__ import annotations

from typing import Any

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.model_kinds import Task
from sd2rt.engines.bundle.sampler_config import A1111Schedule, SamplerConfig
from sd2rt.engines.errors import RequestError
from sd2rt.engines.near_matches import did_you_mean
from sd2rt.runtime.request.request import Request
from sd2rt.runtime.samplers import (
    SAMPLERS,
    SCHEDULES,
    SamplingOptions,
    a1111_config,
    check_a1111_schedule,
    make_plan,
    sampler_config,
)
from sd2rt.runtime.samplers.plan import Plan


def sampler_of(request: Request, manifest: Manifest) -> SamplerConfig:
    """Return the request's sampler configuration.

    Raises:
        RequestError: the sampler, schedule or an option is unknown.
    """
    schedule = _a1111_schedule(request)
    if schedule is not None:
        name = manifest.sampler.name if request.sampler is None else request.sampler
        return a1111_config(name, schedule, request.sampler_options)
    return sampler_config(request.sampler, manifest.sampler, request.schedule, request.sampler_options)


def _a1111_schedule(request: Request) -> A1111Schedule | None:
    """Schedule type of a request with AUTOMATIC1111's grid, or None for the usual grids."""
    if request.grid != "a1111":
        return None
    return check_a1111_schedule(None, "automatic" if request.schedule is None else request.schedule)


def sampling_of(request: Request, strength: float | None) -> SamplingOptions:
    """Return a resolved request's sampling options; custom timesteps or sigmas override the number of steps."""
    custom = request.timesteps is not None or request.sigmas is not None
    return SamplingOptions(
        num_inference_steps=None if custom else request.num_inference_steps,
        timesteps=request.timesteps,
        sigmas=request.sigmas,
        eta=request.eta,
        strength=strength,
        a1111=_a1111_schedule(request),
    )


def nominal_calls(request: Request, manifest: Manifest) -> int:
    """Return the calls of a resolved request's sampler for all steps, counted as evaluations for each."""
    return sampling_of(request, None).step_count * SAMPLERS[sampler_of(request, manifest).name].evaluations


def strength_of(request: Request[Any], task: Task) -> float | None:
    """Return the strength of the late start, or None if sampling starts from pure noise."""
    strength = request.strength
    # AUTOMATIC1111 always starts from the image.
    noise_alone = task.noise_at_full_strength and request.grid != "a1111"
    return None if strength == 1 and noise_alone else strength


def plan_of(request: Request, task: Task, manifest: Manifest) -> Plan:
    """Return a resolved request's sampling plan.

    Raises:
        RequestError: the sampler does not support these options.
    """
    noise = manifest.noise
    if request.rescale_betas_zero_snr is not None:
        noise = noise.model_copy(update={"rescale_betas_zero_snr": request.rescale_betas_zero_snr})
    return make_plan(noise, sampler_of(request, manifest), sampling_of(request, strength_of(request, task)))


def check_names(request: Request) -> None:
    """Check the names of sampler, schedule and sampler options before a bundle is opened.

    Raises:
        RequestError: one is unknown; the message lists the valid names.
    """
    if request.grid == "a1111":
        schedule = _a1111_schedule(request)
        if request.sampler is not None and schedule is not None:
            a1111_config(request.sampler, schedule, request.sampler_options)
    elif request.sampler is not None:
        sampler_config(request.sampler, schedule=request.schedule, options=request.sampler_options)
    elif request.schedule is not None and request.schedule not in SCHEDULES:
        near = did_you_mean(request.schedule, SCHEDULES)
        raise RequestError(
            f"no schedule is named {request.schedule!r}: {near}choose one of {', '.join(SCHEDULES)}"
        )
