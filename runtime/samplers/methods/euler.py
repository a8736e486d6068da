from __future__ import annotations

from itertools import pairwise
from math import sqrt

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers.algebra import NOISE, D, S, make_step, predict
from sd2rt.runtime.samplers.grid import exploding_scale, variance_exploding
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan


def euler(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """Euler's method on the probability flow ODE dx/dsigma = eps, algorithm 2 of arXiv:2206.00364.

    The state is x_0 + sigma eps, so sigma is the noise-to-signal ratio, and the network's input is
    x / sqrt(sigma**2 + 1). The timesteps of custom sigmas are interpolated in log(sigma). Custom sigmas include the
    level after the last step.

    With s_churn, noise is added before steps with a level from s_tmin to s_tmax: s_noise times the amount that raises
    the level to (1 + gamma) sigma. As in diffusers, and unlike in the paper, the network is called before that: its
    output at sigma is used for the noisier sample, and a v-prediction is converted with sigma.

    With a strength, it starts at a later level, from a noised image with a = 1, b = sigma.
    """
    grid = variance_exploding(noise, config, options)
    # diffusers divides the churn by the length of its list of levels, which is one longer with log_linear.
    extra = config.interpolation_type == "log_linear" and config.levels == "spaced"
    max_gamma = min(config.s_churn / (grid.count + extra), sqrt(2) - 1)
    x = S[0]
    steps = []
    levels = grid.levels[grid.start :]
    for timestep, (sigma, sigma_next) in zip(grid.timesteps[grid.start :], pairwise(levels), strict=True):
        alpha = 1 / sqrt(sigma**2 + 1)
        churned = config.s_tmin <= sigma and (config.s_tmax is None or sigma <= config.s_tmax)
        gamma = max_gamma if churned else 0.0
        sigma_hat = sigma * (1 + gamma)
        hat = x + config.s_noise * sqrt(sigma_hat**2 - sigma**2) * NOISE if gamma > 0 else x
        if gamma == 0 or noise.config.prediction_type == "epsilon":
            _, eps = predict(noise.config.prediction_type, alpha * hat, D, alpha, alpha * sigma)
        else:
            x0, _ = predict(noise.config.prediction_type, alpha * hat, D, alpha, alpha * sigma)
            eps = (hat - x0) / sigma_hat
        x_next = hat + (sigma_next - sigma_hat) * eps
        steps.append(make_step(timestep, sigma, x_next, input_scale=alpha, draws_noise=gamma > 0))
    start_noise = None if options.strength is None else (1.0, levels[0])
    return Plan(exploding_scale(grid, config), tuple(steps), start_noise)


def euler_ancestral(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """Ancestral sampling as in k-diffusion (Katherine Crowson): each Euler step goes below the next level and adds
    fresh noise up to it, as much as in DDPM's posterior.

    It starts from an image like euler. All rules for levels are supported; diffusers has spaced levels only.
    """
    grid = variance_exploding(noise, config, options)
    x = S[0]
    steps = []
    levels = grid.levels[grid.start :]
    for timestep, (sigma, sigma_next) in zip(grid.timesteps[grid.start :], pairwise(levels), strict=True):
        alpha = 1 / sqrt(sigma**2 + 1)
        up, down = ancestral(sigma, sigma_next)
        _, eps = predict(noise.config.prediction_type, alpha * x, D, alpha, alpha * sigma)
        x_next = x + (down - sigma) * eps + up * NOISE
        steps.append(make_step(timestep, sigma, x_next, input_scale=alpha, draws_noise=True))
    start_noise = None if options.strength is None else (1.0, levels[0])
    return Plan(exploding_scale(grid, config), tuple(steps), start_noise)


def ancestral(sigma: float, sigma_next: float) -> tuple[float, float]:
    """Split a step between two levels: the amount of fresh noise, and the level before it is added.

    Raises:
        RequestError: the step goes to a higher level.
    """
    if sigma_next > sigma:
        raise RequestError(f"noise levels rise from {sigma:g} to {sigma_next:g}: use decreasing ones")
    up = sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2)
    return up, sqrt(max(0.0, sigma_next**2 - up**2))
