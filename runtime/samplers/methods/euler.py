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

    The state is x_0 + sigma eps, so sigma is the noise-to-signal ratio and the network is shown x /
    sqrt(sigma**2 + 1). Custom sigmas are told to the network as the timesteps that interpolation of log(sigma)
    finds, and must include the level that the last step leaves.

    With s_churn, noise is added before a step whose level is within s_tmin and s_tmax, s_noise times as much as
    brings it to (1 + gamma) sigma. As in diffusers, and unlike in the paper, the network has been asked before
    that: its output at sigma serves for the noisier sample, and a v-prediction is still read with sigma.

    A late start is the rest of the levels, from an image at the first of them: a is 1, b is sigma.
    """
    grid = variance_exploding(noise, config, options)
    # diffusers shares the churn out over its list of levels, which log_linear makes one longer.
    longer = config.interpolation_type == "log_linear" and config.levels == "spaced"
    gamma_most = min(config.s_churn / (grid.count + longer), sqrt(2) - 1)
    x = S[0]
    steps = []
    levels = grid.levels[grid.start :]
    for timestep, (sigma, sigma_next) in zip(grid.timesteps[grid.start :], pairwise(levels), strict=True):
        alpha = 1 / sqrt(sigma**2 + 1)
        churned = config.s_tmin <= sigma and (config.s_tmax is None or sigma <= config.s_tmax)
        gamma = gamma_most if churned else 0.0
        noisier = sigma * (1 + gamma)
        hat = x + config.s_noise * sqrt(noisier**2 - sigma**2) * NOISE if gamma > 0 else x
        if gamma == 0 or noise.config.prediction_type == "epsilon":
            _, eps = predict(noise.config.prediction_type, alpha * hat, D, alpha, alpha * sigma)
        else:
            x0, _ = predict(noise.config.prediction_type, alpha * hat, D, alpha, alpha * sigma)
            eps = (hat - x0) / noisier
        x_next = hat + (sigma_next - noisier) * eps
        steps.append(make_step(timestep, sigma, x_next, input_scale=alpha, draws_noise=gamma > 0))
    start_noise = None if options.strength is None else (1.0, levels[0])
    return Plan(exploding_scale(grid, config), tuple(steps), start_noise)


def euler_ancestral(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """Euler steps to a lower level than the next, and fresh noise up to that one: ancestral sampling as in
    k-diffusion (Katherine Crowson), with as much noise as DDPM's posterior has.

    A late start is as euler's. Levels of any rule are taken; diffusers has spaced ones only.
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
    """The fresh noise of a step between two levels, and the level that is left before it is added.

    Raises RequestError for a step that goes up.
    """
    if sigma_next > sigma:
        raise RequestError(f"noise levels rise from {sigma:g} to {sigma_next:g}: give falling ones")
    up = sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2)
    return up, sqrt(max(0.0, sigma_next**2 - up**2))
