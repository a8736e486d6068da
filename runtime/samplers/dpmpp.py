from __future__ import annotations

from math import log, sqrt

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError
from sd2rt.engines.sampling import SamplerConfig
from sd2rt.runtime.noise_schedule import NoiseSchedule
from sd2rt.runtime.plan import Plan
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.rows import D, S, make_step, predict
from sd2rt.runtime.samplers.timesteps import (
    custom,
    refuse_eta,
    refuse_sigmas,
    spaced,
    start_index,
    step_count,
)


def dpmpp_2m(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """DPM-Solver++(2M), algorithm 2 of arXiv:2211.01095, and its form with Heun's second-order term.

    S_1 remembers the last step's x_0. The first step is of first order; so is the last one where it ends at
    no noise at all, or where lower_order_final is set and there are fewer than 15 steps.

    A late start is the rest of the list, from an image at its first noise level: a and b are that level's
    alpha and sigma. It remembers nothing, so its first step is of first order too; the 15 steps are counted
    over the whole list.

    A last step that goes nowhere (final_sigma sigma_min from timestep 0) leaves the sample as it is, where
    diffusers' Heun form gives NaN.

    Not supported: orders 1 and 3, the SDE form, DPM-Solver (not ++), Karras, exponential, beta, flow and
    uniform-lambda noise levels, custom sigmas, eta, and spacings that visit one noise level twice before a
    second-order step, where diffusers divides by zero (linspace with as many steps as timesteps, leading with
    as many or one fewer).
    """
    refuse_sigmas(config, options)
    refuse_eta(config, options)
    total = noise.config.num_train_timesteps
    timesteps = _timesteps(total, config, options)
    levels = np.interp(timesteps, np.arange(len(noise.sigmas)), noise.sigmas).tolist()
    levels.append(0.0 if config.final_sigma == "zero" else float(noise.sigmas[0]))
    count = len(timesteps)
    start = start_index(total, options)
    first_order_end = config.final_sigma == "zero" or (config.lower_order_final and count < 15)

    x, x0_last = S[0], S[1]
    steps = []
    for i, timestep in enumerate(timesteps[start:].tolist(), start):
        # A level is the noise-to-signal ratio; lambda = log(alpha / sigma) is minus its logarithm.
        level, level_next = levels[i], levels[i + 1]
        alpha, alpha_next = 1 / sqrt(level**2 + 1), 1 / sqrt(level_next**2 + 1)
        sigma, sigma_next = alpha * level, alpha_next * level_next

        x0, _ = predict(noise.config.prediction_type, x, D, alpha, sigma)
        decay = level_next / level - 1  # exp(-h) - 1 with h the step in lambda; it needs no logarithm of 0
        x_next = sigma_next / sigma * x - alpha_next * decay * x0
        if i > start and not (i == count - 1 and first_order_end):
            if levels[i - 1] == level:
                raise RequestError(
                    f"dpmpp-2m with {config.spacing} spacing visits timestep {timestep:g}'s noise level twice "
                    f"in {count} steps: ask for fewer steps or another spacing"
                )
            h, h_last = log(level / level_next), log(levels[i - 1] / level)
            slope = (x0 - x0_last) / h_last
            if config.solver_type == "midpoint":
                x_next = x_next - alpha_next * decay * h / 2 * slope
            else:
                x_next = x_next + alpha_next * (decay + h) * slope
        steps.append(make_step(timestep, x_next, x0, level=level))
    alpha = 1 / sqrt(levels[start] ** 2 + 1)
    start_noise = None if options.strength is None else (alpha, alpha * levels[start])
    return Plan(1.0, tuple(steps), start_noise)


def _timesteps(total: int, config: SamplerConfig, options: SamplingOptions) -> NDArray[np.float64]:
    if options.timesteps is not None:
        return custom(total, options.timesteps, whole=True)
    count = step_count(total, options)
    if config.spacing == "trailing":
        return spaced(total, count, config.spacing, config.steps_offset)
    # One more than there are steps: the lowest is where the last step would end, and is not visited.
    return spaced(total, count + 1, config.spacing, config.steps_offset)[:-1].round()
