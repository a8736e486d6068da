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
"""Adams and Bashforth's weights of the last outputs, the latest first, for steps of one length."""


def ipndm(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """The improved PNDM of arXiv:2204.13902, appendix H.3: DDIM's step with the Adams-Bashforth mean of the last
    noises, whose order grows from 1 to solver_order instead of starting with Runge-Kutta steps.

    The weights are those of equal steps, whatever the levels are. S_1, S_2, S_3 are the last noises, the latest
    first. diffusers' scheduler of this name has a noise schedule of its own, with which no SD2 checkpoint was
    trained: this is its method on the checkpoint's.

    A late start is the rest of the list, from an image at its first noise level, of which nothing is remembered.

    Not supported: eta.
    """
    grid = variance_preserving(noise, config, options)
    signal = Signal(grid.levels)
    x, *remembered = S[:4]
    steps = []
    for i in range(grid.start, grid.count):
        _, eps = predict(noise.config.prediction_type, x, D, signal.alpha[i], signal.sigma[i])
        known = [eps, *remembered]
        order = min(config.solver_order, i - grid.start + 1)
        mean = 0 * eps
        for weight, value in zip(ADAMS[order - 1], known, strict=False):
            mean = mean + weight * value
        clean = (x - signal.sigma[i] * mean) / signal.alpha[i]
        x_next = signal.alpha[i + 1] * clean + signal.sigma[i + 1] * mean
        kept = min(config.solver_order - 1, i - grid.start + 1)
        steps.append(make_step(grid.timesteps[i], grid.levels[i], x_next, *known[:kept]))
    start_noise = None if options.strength is None else signal.start(grid.start)
    return Plan(1.0, tuple(steps), start_noise)
