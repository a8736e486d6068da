from __future__ import annotations

from math import sqrt

import numpy as np

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers.algebra import NOISE, D, S, make_step, predict
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan
from sd2rt.runtime.samplers.timesteps import custom, refuse_eta, refuse_sigmas, start_index, step_count

_SIGMA_DATA = 0.5


def lcm(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """Multistep sampling of a latent consistency model, algorithm 3 of arXiv:2310.04378: each call predicts a clean
    image, and all but the last add noise to it again, up to the level of the next timestep.

    The clean image is c_skip x + c_out x_0, with the boundary scalings of the timestep (times timestep_scaling).
    Timesteps are chosen evenly from the original_inference_steps that the model was distilled with.

    With a strength, it starts later in the list, from an image noised to that timestep.

    Not supported: custom sigmas, eta, other spacings, clipping or thresholding of x_0.
    """
    refuse_sigmas(config, options)
    refuse_eta(config, options)
    timesteps = distilled_timesteps(noise, config, options)
    a = noise.alphas_cumprod.tolist()
    start = start_index(noise.config.num_train_timesteps, options)
    x = S[0]
    steps = []
    for i, timestep in enumerate(timesteps[start:], start):
        a_t = a[timestep]
        x0, _ = predict(noise.config.prediction_type, x, D, sqrt(a_t), sqrt(1 - a_t))
        scaled = timestep * config.timestep_scaling
        variance = scaled**2 + _SIGMA_DATA**2
        clean = scaled / sqrt(variance) * x0 + _SIGMA_DATA**2 / variance * x
        if i < len(timesteps) - 1:
            a_next = a[timesteps[i + 1]]
            clean = sqrt(a_next) * clean + sqrt(1 - a_next) * NOISE
        steps.append(make_step(timestep, noise.sigmas[timestep], clean))
    a_start = a[timesteps[start]]
    start_noise = None if options.strength is None else (sqrt(a_start), sqrt(1 - a_start))
    return Plan(1.0, tuple(steps), start_noise)


def distilled_timesteps(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> list[int]:
    """Choose timesteps evenly from those that a model was distilled with, or return the custom timesteps.

    Raises:
        RequestError: there are more steps than such timesteps.
    """
    total = noise.config.num_train_timesteps
    if options.timesteps is not None:
        return [int(timestep) for timestep in custom(total, options.timesteps, whole=True)]
    original, count = config.original_inference_steps, step_count(total, options)
    if original > total:
        raise RequestError(
            f"original_inference_steps is {original}: the schedule has {total} timesteps, use at most {total}"
        )
    if count > original:
        raise RequestError(
            f"{config.name} has {original} timesteps to choose {count} steps from: use at most {original} steps, or "
            "set original_inference_steps"
        )
    distilled = np.arange(1, original + 1)[::-1] * (total // original) - 1
    indices = np.floor(np.linspace(0, original, count, endpoint=False)).astype(int)
    return [int(timestep) for timestep in distilled[indices]]
