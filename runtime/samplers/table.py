"""Choosing a sampler by its name."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from sd2rt.engines.errors import RequestError
from sd2rt.engines.sampling import NoiseConfig, SamplerConfig, SamplerName, Spacing
from sd2rt.runtime.noise_schedule import NoiseSchedule
from sd2rt.runtime.plan import Plan
from sd2rt.runtime.samplers.ddim import ddim
from sd2rt.runtime.samplers.dpmpp import dpmpp_2m
from sd2rt.runtime.samplers.euler import euler
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.pndm import pndm

Sampler = Callable[[NoiseSchedule, SamplerConfig, SamplingOptions], Plan]

SAMPLERS: dict[SamplerName, Sampler] = {"ddim": ddim, "pndm": pndm, "euler": euler, "dpmpp-2m": dpmpp_2m}

USUAL_SPACING: dict[SamplerName, Spacing] = {
    "ddim": "leading",
    "pndm": "leading",
    "euler": "linspace",
    "dpmpp-2m": "linspace",
}
"""The spacing of each of diffusers' schedulers where its configuration does not name one."""


def make_plan(noise: NoiseConfig, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """The named sampler's plan. It depends on nothing else than these three, is remembered, and is read-only.

    Raises RequestError where the sampler does not support what the options ask.
    """
    return _plan(noise, config, options)


@lru_cache(maxsize=128)
def _plan(noise: NoiseConfig, config: SamplerConfig, options: SamplingOptions) -> Plan:
    return SAMPLERS[config.name](_schedule(noise), config, options)


@lru_cache(maxsize=8)
def _schedule(noise: NoiseConfig) -> NoiseSchedule:
    return NoiseSchedule(noise)


def sampler_config(
    name: str, base: SamplerConfig | None = None, spacing: Spacing | None = None
) -> SamplerConfig:
    """The configuration of a sampler that a request names, on a checkpoint whose own one is ``base``.

    It is what ``Scheduler.from_config(pipe.scheduler.config)`` gives in diffusers: options carry over, but
    for a spacing that the checkpoint left to its scheduler's default, in whose place comes the new
    scheduler's default. A base does not say what was left to a default, so its sampler's usual spacing is
    taken to be one. Without a base, the options are those that every published SD2 checkpoint shares.
    ``spacing`` overrides.

    Raises RequestError for a name that is no sampler's.
    """
    sampler = next((known for known in SAMPLERS if known == name), None)
    if sampler is None:
        raise RequestError(f"no sampler is named {name!r}: choose one of {', '.join(SAMPLERS)}")
    if base is None:
        base = SamplerConfig(
            name=sampler,
            spacing=USUAL_SPACING[sampler],
            steps_offset=1,
            set_alpha_to_one=False,
            final_sigma="zero",
            lower_order_final=True,
            solver_type="midpoint",
        )
    if spacing is None:
        usual = base.spacing == USUAL_SPACING[base.name]
        spacing = USUAL_SPACING[sampler] if usual else base.spacing
    return base.model_copy(update={"name": sampler, "spacing": spacing})
