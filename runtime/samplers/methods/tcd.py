from __future__ import annotations

from math import floor, sqrt

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.runtime.samplers.algebra import NOISE, D, S, make_step, predict
from sd2rt.runtime.samplers.methods.lcm import distilled_timesteps
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan
from sd2rt.runtime.samplers.timesteps import refuse_sigmas, start_index


def tcd(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """Strategic stochastic sampling of a trajectory consistency model, algorithm 4 of arXiv:2402.19159.

    Each call goes from timestep t to s = (1 - eta) t', without noise, and from there with fresh noise up to t', the
    next of the list; the last one goes to timestep (1 - eta) 0 and adds none. eta is the paper's gamma: 0 draws
    nothing, 1 is LCM's way; diffusers' scheduler has 0.3 where its caller gives none, its pipelines give 0.
    Timesteps are chosen as lcm's.

    A late start is the rest of the list, from an image at its first timestep's noise.

    Not supported: custom sigmas, other spacings, clipping or thresholding of x_0.
    """
    refuse_sigmas(config, options)
    timesteps = distilled_timesteps(noise, config, options)
    a = noise.alphas_cumprod.tolist()
    start = start_index(noise.config.num_train_timesteps, options)
    x = S[0]
    steps = []
    for i, timestep in enumerate(timesteps[start:], start):
        last = i == len(timesteps) - 1
        target = 0 if last else timesteps[i + 1]
        a_t, a_next, a_s = a[timestep], a[target], a[floor((1 - options.eta) * target)]
        x0, eps = predict(noise.config.prediction_type, x, D, sqrt(a_t), sqrt(1 - a_t))
        x_next = sqrt(a_s) * x0 + sqrt(1 - a_s) * eps
        draws = options.eta > 0 and not last
        if draws:
            x_next = sqrt(a_next / a_s) * x_next + sqrt(1 - a_next / a_s) * NOISE
        steps.append(make_step(timestep, noise.sigmas[timestep], x_next, draws_noise=draws))
    a_start = a[timesteps[start]]
    start_noise = None if options.strength is None else (sqrt(a_start), sqrt(1 - a_start))
    return Plan(1.0, tuple(steps), start_noise)
