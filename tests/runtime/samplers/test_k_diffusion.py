"""Samplers that diffusers does not have, against k-diffusion's formulas on the usual grids."""

from __future__ import annotations

from itertools import cycle, product

import numpy as np
import pytest

from benchmarks.compatibility import k_diffusion_loops as reference
from sd2rt.engines.bundle.sampler_config import PredictionType, SamplerName
from sd2rt.runtime.samplers import SamplingOptions, make_plan
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.plan import Plan

from .cases import BOUND, K_DIFFUSION, PREDICTIONS, SPACINGS, STEPS, config_of, noise_config
from .reference_schedulers import Draws, follow, relative_error


def dpm_fast(
    denoise: reference.Denoise, x: reference.Array, sigmas: list[float], noise: reference.Noise
) -> reference.Array:
    ends = sigmas[0], float(NoiseSchedule(noise_config()).sigmas[0])
    return reference.dpm_fast_between(denoise, x, ends, len(sigmas) - 1, noise, eta=0.0)


LOOPS = {
    "restart": reference.restart,
    "dpmpp-2s-a": reference.dpmpp_2s_ancestral,
    "dpmpp-3m-sde": reference.dpmpp_3m_sde,
    "dpm-fast": dpm_fast,
}


def by_formula(
    name: SamplerName, kind: PredictionType, plan: Plan, levels: list[float], draws: Draws
) -> float:
    """Relative difference between a plan's result and the loop's, for the same outputs and noises."""
    calls = iter(zip(draws.outputs, draws.noises, strict=True))
    noises = []

    def denoise(x: reference.Array, sigma: float) -> reference.Array:
        output, noise = next(calls)
        noises.append(noise)
        scale = 1 / np.sqrt(sigma**2 + 1)
        if kind == "sample":
            return np.asarray(output)
        if kind == "v_prediction":
            return np.asarray(scale**2 * x - sigma * scale * output)
        return np.asarray(x - sigma * output)

    start = follow(plan, draws).start
    result = LOOPS[name](denoise, start, levels, lambda *_: noises[-1])
    return relative_error(follow(plan, draws).samples[-1:], result[None])


def formula_error(name: SamplerName, kinds: tuple[PredictionType, ...] = PREDICTIONS) -> tuple[float, int]:
    """Largest difference over steps, spacings, rules for levels and strengths, and the number of cases."""
    rules = cycle(["spaced", "karras", "exponential", "beta", "ays"])
    errors = []
    for kind, (steps, spacing) in product(kinds, zip(STEPS, cycle(SPACINGS), strict=False)):
        for strength in (None, 1.0, 0.58):
            if strength is not None and int(steps * strength) == 0:
                continue
            config = config_of(name, spacing, levels=next(rules))
            options = SamplingOptions(steps, strength=strength)
            plan = make_plan(noise_config(kind), config, options)
            # The plan of the Euler sampler visits the same levels, once each.
            euler = config_of("euler", spacing, levels=config.levels)
            levels = [*make_plan(noise_config(kind), euler, options).levels, 0.0]
            errors.append(by_formula(name, kind, plan, levels, Draws.seeded(len(plan.steps))))
    return max(errors), len(errors)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("name", K_DIFFUSION)
def test_a_plan_is_the_formula(name: SamplerName, kind: PredictionType) -> None:
    assert formula_error(name, (kind,))[0] <= BOUND


def test_timesteps_between_levels_are_interpolated_in_log_sigma() -> None:
    plan = make_plan(noise_config(), config_of("dpmpp-2s-a", levels="karras"), SamplingOptions(5))
    table = np.log(NoiseSchedule(noise_config()).sigmas)
    assert len(plan.steps) == 9
    for step in plan.steps:
        assert np.interp(step.timestep, np.arange(1000), table) == pytest.approx(np.log(step.level), abs=1e-9)
