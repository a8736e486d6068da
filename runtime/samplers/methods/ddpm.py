from __future__ import annotations

from math import sqrt

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.runtime.samplers.algebra import NOISE, D, S, make_step, predict
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan
from sd2rt.runtime.samplers.timesteps import refuse_eta, refuse_sigmas, start_index, table_indices

_MIN_VARIANCE = 1e-20
"""Lower bound of the variance, as in diffusers."""


def ddpm(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """DDPM, equation 7 of arXiv:2006.11239, from each timestep to the next and finally to a clean image.

    variance_type selects one of the paper's two variances: fixed_small is that of the posterior (beta tilde),
    fixed_large is beta. The step from timestep 0 adds no noise.

    With a strength, it starts later in the list, from an image noised to that timestep.

    Not supported: learned variances, clipping or thresholding of x_0 (on by default in diffusers, but intended for
    images, not latents), custom sigmas, eta, and spacings that leave the schedule (see ddim).
    """
    refuse_sigmas(config, options)
    refuse_eta(config, options)
    timesteps = table_indices(noise, config, options)
    targets = [*timesteps[1:], -1]
    start = start_index(noise.config.num_train_timesteps, options)
    timesteps, targets = timesteps[start:], targets[start:]

    a = noise.alphas_cumprod.tolist()
    x = S[0]
    steps = []
    for timestep, target in zip(timesteps, targets, strict=True):
        a_t, a_next = a[timestep], a[target] if target >= 0 else 1.0
        alpha = a_t / a_next
        x0, _ = predict(noise.config.prediction_type, x, D, sqrt(a_t), sqrt(1 - a_t))
        x_next = (sqrt(a_next) * (1 - alpha) * x0 + sqrt(alpha) * (1 - a_next) * x) / (1 - a_t)
        if timestep > 0:
            small = max((1 - a_next) / (1 - a_t) * (1 - alpha), _MIN_VARIANCE)
            variance = small if config.variance_type == "fixed_small" else 1 - alpha
            x_next = x_next + sqrt(variance) * NOISE
        steps.append(make_step(timestep, noise.sigmas[timestep], x_next))
    a_start = a[timesteps[0]]
    start_noise = None if options.strength is None else (sqrt(a_start), sqrt(1 - a_start))
    return Plan(1.0, tuple(steps), start_noise)
