from __future__ import annotations

from math import sqrt

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.runtime.samplers.a1111.level_lists import rounded_halves
from sd2rt.runtime.samplers.algebra import NOISE, D, Row, S, make_step, predict
from sd2rt.runtime.samplers.grid import exploding_scale, midpoints, variance_exploding
from sd2rt.runtime.samplers.methods.euler import ancestral
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan


def dpm_sde(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """DPM-Solver++ for the SDE as in k-diffusion (Katherine Crowson): midpoint steps in log(sigma) on x_0, with
    ancestral noise in both halves.

    Each step makes two network calls. The last step, to noise level 0, is an Euler step, so N steps make 2N - 1
    calls. S_1 is the sample at the start of the step, S_2 the noise of its first half. Both halves belong to one
    Brownian path over sigma, so the noise of the whole step is sqrt((sigma - middle) / (sigma - next)) times that of
    the first half, plus fresh noise for the rest. diffusers draws the path with torchsde, so the same seed gives
    another image there; the coefficients are the same.

    With a strength, it skips whole steps and starts from a noised image with a = 1, b = sigma.
    """
    grid = variance_exploding(noise, config, options)
    kind = noise.config.prediction_type
    x, step_start, first_noise = S[:3]
    middles, middle_timesteps = midpoints(noise, grid.levels, grid.levels[1:])
    steps = []
    for i in range(grid.start, grid.count):
        sigma, middle, sigma_next = grid.levels[i], middles[i], grid.levels[i + 1]
        alpha = 1 / sqrt(sigma**2 + 1)
        x0, _ = predict(kind, alpha * x, D, alpha, alpha * sigma)
        if sigma_next == 0:
            steps.append(make_step(grid.timesteps[i], sigma, x0, input_scale=alpha))
            break
        x_middle = move_and_renoise(x, x0, sigma, middle, config.s_noise * NOISE)
        first_half = whole = None
        share = (sigma - middle) / (sigma - sigma_next)
        step_noise = sqrt(share) * first_noise + sqrt(1 - share) * NOISE
        if grid.path is not None:
            # The path itself relates the noise of the whole step to that of its first half.
            begin, half, end = rounded_halves(sigma, sigma_next)
            first_half, whole, step_noise = (begin, half), (begin, end), NOISE
        slots = (x_middle, x, NOISE)
        steps.append(
            make_step(
                grid.timesteps[i], sigma, *slots, input_scale=alpha, draws_noise=True, interval=first_half
            )
        )
        alpha = 1 / sqrt(middle**2 + 1)
        x0, _ = predict(kind, alpha * x, D, alpha, alpha * middle)
        x_next = move_and_renoise(step_start, x0, sigma, sigma_next, config.s_noise * step_noise)
        steps.append(
            make_step(
                middle_timesteps[i],
                middle,
                x_next,
                input_scale=alpha,
                draws_noise=True,
                interval=whole,
                # diffusers gives the kept area of a mask the level of the next step, not that of the midpoint.
                kept_level=sigma_next,
            )
        )
    start_noise = None if options.strength is None else (1.0, grid.levels[grid.start])
    return Plan(exploding_scale(grid, config), tuple(steps), start_noise, grid.path)


def move_and_renoise(x: Row, x0: Row, sigma: float, target: float, noise: Row) -> Row:
    """Move x from level sigma towards x_0 to a level below the target, and add unit noise up to the target."""
    up, down = ancestral(sigma, target)
    moved: Row = down / sigma * x + (1 - down / sigma) * x0 + up * noise
    return moved
