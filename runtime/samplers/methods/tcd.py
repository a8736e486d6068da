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

    For the next timestep t', each call goes to timestep (1 - eta) t' without noise, then adds fresh noise up to t'.
    The last call goes to timestep 0 without fresh noise. eta is the paper's gamma: 0 draws no noise, 1 samples like
    LCM. The default is 0.3 in diffusers' scheduler, and 0 in its pipelines. Timesteps are chosen as for lcm.

    With a strength, it starts later in the list, from an image noised to that timestep.

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
