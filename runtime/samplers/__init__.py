"""Samplers: pure functions from a noise schedule, a configuration and sampling options to a plan."""

from sd2rt.engines.bundle.sampler_config import SCHEDULES, schedules_of
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.registry import (
    SAMPLERS,
    Sampler,
    a1111_config,
    check_a1111_schedule,
    choices_of,
    make_plan,
    sampler_config,
)

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "Sampler",
    "SamplingOptions",
    "a1111_config",
    "check_a1111_schedule",
    "choices_of",
    "make_plan",
    "sampler_config",
    "schedules_of",
]
