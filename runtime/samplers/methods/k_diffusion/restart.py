from __future__ import annotations

from itertools import pairwise

import numpy as np

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.runtime.samplers.grid import exploding_scale, variance_exploding
from sd2rt.runtime.samplers.methods.heun import heun_steps
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan
from sd2rt.runtime.samplers.sigma_schedules import karras
from sd2rt.runtime.samplers.timesteps import timesteps_of

_FEWEST = 20
"""Steps from which there is a restart."""
_TWICE = 36
"""Steps from which there are two."""
_FIRST_LENGTH = 9
_FROM, _TO = 0.1, 2.0
"""A restart goes from the level nearest to the first up to the one nearest to the second."""


def restart(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """Restart sampling, arXiv:2306.14878: Heun's method, which near its end goes back to a higher noise level by
    adding noise, and down again.

    Number and length of the restarts are those of AUTOMATIC1111: none below 20 steps, one of 9 steps from 20 steps
    on, two of a quarter of all steps each from 36 on. They are part of the number of steps. With a restart, all
    levels are those of karras between the first and the lowest one of the schedule. N steps make 2N - 1 network
    calls, or one fewer for each restart from level 0; slots are those of heun.

    With a strength, it skips whole steps and starts from a noised image with a = 1, b = sigma.
    """
    grid = variance_exploding(noise, config, options)
    pairs = np.array(restarted(grid.levels[grid.start :]))
    timesteps = timesteps_of(noise, pairs)
    moves = [
        ((begin, timestep), (end, None if end == 0 else end_timestep))
        for (begin, end), (timestep, end_timestep) in zip(pairs.tolist(), timesteps.tolist(), strict=True)
    ]
    steps = heun_steps(noise.config.prediction_type, moves)
    start_noise = None if options.strength is None else (1.0, grid.levels[grid.start])
    return Plan(exploding_scale(grid, config), tuple(steps), start_noise)


def restarted(levels: list[float]) -> list[tuple[float, float]]:
    """List the levels between which each step goes; where one begins above the last one's end, noise is added."""
    count = len(levels) - 1
    if count < _FEWEST:
        return list(pairwise(levels))
    times, length = (1, _FIRST_LENGTH) if count < _TWICE else (2, count // 4)
    main = [*karras(levels[-2], levels[0], count - times * length).tolist(), 0.0]
    low, high = (min(range(len(main)), key=lambda i: abs(main[i] - level)) for level in (_FROM, _TO))
    pairs = list(pairwise(main))
    again = list(pairwise(karras(main[low], main[high], length + 1).tolist())) if high < low else []
    return pairs[:low] + times * again + pairs[low:]
