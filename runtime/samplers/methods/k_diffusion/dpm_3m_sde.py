from __future__ import annotations

from math import exp, expm1, log, sqrt

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers.algebra import NOISE, D, S, make_step, predict
from sd2rt.runtime.samplers.grid import exploding_scale, variance_exploding
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan


def dpm_3m_sde(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """DPM-Solver++(3M) for the SDE as in k-diffusion (Katherine Crowson): multistep steps in log(sigma) on x_0, of up
    to third order in the part without noise.

    S_1 and S_2 are the last predictions, the latest first; the order grows with their number. The step to noise level
    0 returns the prediction.

    With a strength, it starts at a later level, from a noised image with a = 1, b = sigma.
    """
    grid = variance_exploding(noise, config, options)
    x, *history = S[:3]
    steps = []
    for i in range(grid.start, grid.count):
        sigma, sigma_next, done = grid.levels[i], grid.levels[i + 1], i - grid.start
        alpha = 1 / sqrt(sigma**2 + 1)
        x0, _ = predict(noise.config.prediction_type, alpha * x, D, alpha, alpha * sigma)
        if sigma_next == 0:
            steps.append(make_step(grid.timesteps[i], sigma, x0, input_scale=alpha))
            continue
        h = log(sigma / sigma_next)
        if h == 0:
            raise RequestError(
                f"{config.name} repeats a noise level in {grid.count} steps: use fewer steps or another schedule"
            )
        # The exponential integrates over twice the length, because half of it stems from the noise.
        line = expm1(-2 * h) / (2 * h) + 1
        x_next = exp(-2 * h) * x - expm1(-2 * h) * x0
        slopes = [
            (newer - older) * h / log(grid.levels[i - 1 - age] / grid.levels[i - age])
            for age, (newer, older) in enumerate(zip([x0, *history], history, strict=False))
            if age < done
        ]
        if len(slopes) == 1:
            x_next = x_next + line * slopes[0]
        elif slopes:
            last, before = (log(grid.levels[i - 1 - age] / grid.levels[i - age]) / h for age in (0, 1))
            bend = (slopes[0] - slopes[1]) / (last + before)
            x_next = x_next + line * (slopes[0] + last * bend) - (line / (2 * h) - 0.5) * bend
        x_next = x_next + sqrt(-expm1(-2 * h)) * sigma_next * NOISE
        steps.append(
            make_step(
                grid.timesteps[i],
                sigma,
                x_next,
                *[x0, *history][: min(done + 1, 2)],
                input_scale=alpha,
                interval=grid.interval(i),
            )
        )
    start_noise = None if options.strength is None else (1.0, grid.levels[grid.start])
    return Plan(exploding_scale(grid, config), tuple(steps), start_noise, grid.path)
