"""Noise levels that AUTOMATIC1111's k-diffusion samplers visit."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

import numpy as np

from sd2rt.engines.bundle.sampler_config import SamplerName
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers.a1111.facts import FACTS
from sd2rt.runtime.samplers.a1111.model_levels import ModelLevels
from sd2rt.runtime.samplers.a1111.schedule_types import RULES
from sd2rt.runtime.samplers.options import SamplingOptions

_MAX_STRENGTH = 0.999
"""AUTOMATIC1111 limits strengths to this."""


@dataclass(frozen=True, slots=True)
class LevelList:
    """Levels of one run, the one after the last step included, and the ends of the whole schedule above 0."""

    levels: list[float]
    lowest: float
    highest: float


def level_list(name: SamplerName, model: ModelLevels, options: SamplingOptions) -> LevelList:
    """Make the list of a sampler's levels; a start from an image leaves out the first ones.

    Raises:
        RequestError: no step is left.
    """
    facts, schedule, steps = FACTS[name], options.a1111, options.step_count
    assert schedule is not None
    rule = RULES[facts.automatic if schedule == "automatic" else schedule]
    levels = [float(level) for level in rule(steps + facts.drops_next_to_last, model)]
    if facts.drops_next_to_last:
        del levels[-2]
    visited = levels if options.strength is None else levels[steps - encoded_steps(options) - 1 :]
    if len(visited) < 2:
        raise RequestError(
            f"{name} with the schedule {schedule} of the grid a1111 makes no step here: change the number of steps"
        )
    return LevelList(visited, min(level for level in levels if level > 0), max(levels))


def encoded_steps(options: SamplingOptions) -> int:
    """Steps by which an image is noised: one fewer than the denoiser calls of one-call samplers that follow."""
    assert options.strength is not None
    return int(min(options.strength, _MAX_STRENGTH) * options.step_count)


def rounded_halves(level: float, following: float) -> tuple[float, float, float]:
    """Level, the middle in log(sigma), and the following level, as float32 has them after logarithm and exponential.

    The middles serve as places on a Brownian path, whose values depend on the last bits.
    """
    start, end = (np.float32(-log(each)) for each in (level, following))
    middle = start + (end - start) * np.float32(0.5)
    first, second, third = (float(np.float32(exp(-place))) for place in (start, middle, end))
    return first, second, third
