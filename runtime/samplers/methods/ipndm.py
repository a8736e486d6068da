from __future__ import annotations

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.runtime.samplers.algebra import D, S, make_step, predict
from sd2rt.runtime.samplers.alpha_sigma import Signal
from sd2rt.runtime.samplers.grid import variance_preserving
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan

ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Adams-Bashforth weights of the last outputs, the latest first, for equal steps."""


def ipndm(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """Improved PNDM, arXiv:2204.13902, appendix H.3: DDIM steps with the Adams-Bashforth mean of the last noises. The
    order grows from 1 to solver_order, without Runge-Kutta steps at the start.

    The weights assume equal steps, whatever the levels are. S_1, S_2, S_3 are the last noises, the latest first.
    diffusers' scheduler of this name has another noise schedule, which no SD2 checkpoint was trained with; here the
    method uses the checkpoint's schedule.

    With a strength, it starts later in the list, from an image noised to that level, without earlier noises.

    Not supported: eta.
    """
    grid = variance_preserving(noise, config, options)
    signal = Signal(grid.levels)
    x, *history = S[:4]
    steps = []
    for i in range(grid.start, grid.count):
        _, eps = predict(noise.config.prediction_type, x, D, signal.alpha[i], signal.sigma[i])
        noises = [eps, *history]
        order = min(config.solver_order, i - grid.start + 1)
        mean = 0 * eps
        for weight, value in zip(ADAMS[order - 1], noises, strict=False):
            mean = mean + weight * value
        clean = (x - signal.sigma[i] * mean) / signal.alpha[i]
        x_next = signal.alpha[i + 1] * clean + signal.sigma[i + 1] * mean
        history_size = min(config.solver_order - 1, i - grid.start + 1)
        steps.append(make_step(grid.timesteps[i], grid.levels[i], x_next, *noises[:history_size]))
    start_noise = None if options.strength is None else signal.start(grid.start)
    return Plan(1.0, tuple(steps), start_noise)
