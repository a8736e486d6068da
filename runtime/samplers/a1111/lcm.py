from __future__ import annotations

from itertools import pairwise
from math import sqrt

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.runtime.samplers.a1111.level_lists import level_list
from sd2rt.runtime.samplers.a1111.model_levels import distilled
from sd2rt.runtime.samplers.algebra import NOISE, D, S, make_step
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan
from sd2rt.runtime.samplers.timesteps import refuse_eta

_SIGMA_DATA = 0.5


def lcm(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """Multistep sampling of a latent consistency model, algorithm 3 of arXiv:2310.04378, as in AUTOMATIC1111.

    The state is x_0 + sigma eps. The network is called with the nearest of the fifty timesteps that such models were
    distilled with. As there, its output counts as noise even if it predicts v.
    """
    refuse_eta(config, options)
    model = distilled(noise)
    levels = level_list("lcm", model, options).levels
    x = S[0]
    steps = []
    timesteps = model.nearest_timesteps(levels[:-1])
    for timestep, (sigma, sigma_next) in zip(timesteps, pairwise(levels), strict=True):
        scaled = timestep * config.timestep_scaling
        variance = scaled**2 + _SIGMA_DATA**2
        clean = scaled / sqrt(variance) * (x - sigma * D) + _SIGMA_DATA**2 / variance * x
        steps.append(
            make_step(timestep, sigma, clean + sigma_next * NOISE, input_scale=1 / sqrt(sigma**2 + 1))
        )
    return Plan(levels[0], tuple(steps), None if options.strength is None else (1.0, levels[0]))
