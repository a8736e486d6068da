from __future__ import annotations

from math import sqrt

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.runtime.samplers.a1111.timestep_lists import walk
from sd2rt.runtime.samplers.algebra import D, Row, S, make_step, predict
from sd2rt.runtime.samplers.methods.ipndm import ADAMS
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.plan import Plan
from sd2rt.runtime.samplers.timesteps import refuse_eta


def plms(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Plan:
    """PLMS of arXiv:2202.09778 as in the original Stable Diffusion: the first step is an improved Euler step of two
    calls, later ones use the Adams-Bashforth mean of up to four noises.

    S_1 is the sample at the start of the first step, later S_1, S_2, S_3 are the last noises, the latest first.
    """
    refuse_eta(config, options)
    visited = walk(config.name, noise, options)
    a = noise.alphas_cumprod.tolist()
    x, *history = S[:4]
    step_start, first = S[1:3]

    def noise_at(timestep: int) -> Row:
        _, eps = predict(noise.config.prediction_type, x, D, sqrt(a[timestep]), sqrt(1 - a[timestep]))
        return eps

    def move(sample: Row, eps: Row, index: int) -> Row:
        a_t, a_next = a[visited.timesteps[index]], a[visited.targets[index]]
        clean = (sample - sqrt(1 - a_t) * eps) / sqrt(a_t)
        moved: Row = sqrt(a_next) * clean + sqrt(1 - a_next) * eps
        return moved

    steps = []
    for index, timestep in enumerate(visited.timesteps):
        eps, level = noise_at(timestep), noise.sigmas[timestep]
        if index == 0:
            steps.append(make_step(timestep, level, move(x, eps, 0), x, eps))
            target = visited.targets[0]
            mean = (first + noise_at(target)) / 2
            steps.append(make_step(target, noise.sigmas[target], move(step_start, mean, 0), first))
            continue
        noises = [eps, *history][: min(index + 1, len(ADAMS))]
        mean = 0 * eps
        for weight, value in zip(ADAMS[len(noises) - 1], noises, strict=True):
            mean = mean + weight * value
        steps.append(make_step(timestep, level, move(x, mean, index), *noises[: len(ADAMS) - 1]))
    a_start = a[visited.entry]
    return Plan(1.0, tuple(steps), None if options.strength is None else (sqrt(a_start), sqrt(1 - a_start)))
