from __future__ import annotations

from itertools import pairwise
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.sampling import SamplerConfig
from sd2rt.runtime.noise_schedule import NoiseSchedule
from sd2rt.runtime.plan import Plan
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.rows import D, S, make_step, predict
from sd2rt.runtime.samplers.timesteps import custom, refuse_eta, spaced, start_index, step_count


def euler(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """Euler's method on the probability flow ODE dx/dsigma = eps, algorithm 2 of arXiv:2206.00364 without
    churn.

    The state is x_0 + sigma eps, so sigma is the noise-to-signal ratio and the network is shown x /
    sqrt(sigma**2 + 1). Timesteps may be fractional (linspace spacing and custom lists): noise levels
    between two training timesteps are interpolated. Custom sigmas are told to the network as the timesteps
    that interpolation of log(sigma) finds, and must include the level that the last step leaves.

    A late start is the rest of the levels, from an image at the first of them: a is 1, b is sigma.

    Not supported: churn (s_churn, s_noise), Karras, exponential and beta noise levels, zero terminal SNR.
    """
    refuse_eta(config, options)
    timesteps, sigmas = _levels(noise, config, options)
    # Leading spacing starts below the noisiest level, and diffusers then gives the start its signal's
    # variance too; it asks the configured spacing even where the request's own list takes its place.
    largest = max(sigmas)
    init_scale = sqrt(largest**2 + 1) if config.spacing == "leading" else largest
    start = start_index(noise.config.num_train_timesteps, options)
    timesteps, sigmas = timesteps[start:], sigmas[start:]

    x = S[0]
    steps = []
    for timestep, (sigma, sigma_next) in zip(timesteps, pairwise(sigmas), strict=True):
        alpha = 1 / sqrt(sigma**2 + 1)
        _, eps = predict(noise.config.prediction_type, alpha * x, D, alpha, alpha * sigma)
        steps.append(make_step(timestep, x + (sigma_next - sigma) * eps, level=sigma, input_scale=alpha))
    start_noise = None if options.strength is None else (1.0, sigmas[0])
    return Plan(init_scale, tuple(steps), start_noise)


def _levels(
    noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions
) -> tuple[list[float], list[float]]:
    """Timesteps, and one noise level more than those."""
    total = noise.config.num_train_timesteps
    training: NDArray[np.float64] = np.arange(total, dtype=np.float64)
    if options.sigmas is not None:
        # Levels outside of the schedule are told as its first or last timestep.
        timesteps = np.interp(np.log(options.sigmas[:-1]), np.log(noise.sigmas), training)
        return timesteps.tolist(), list(options.sigmas)
    if options.timesteps is not None:
        timesteps = custom(total, options.timesteps, whole=False)
    else:
        timesteps = spaced(total, step_count(total, options), config.spacing, config.steps_offset)
    sigmas = np.interp(timesteps, training, noise.sigmas)
    final = 0.0 if config.final_sigma == "zero" else float(noise.sigmas[0])
    return timesteps.tolist(), [*sigmas.tolist(), final]
