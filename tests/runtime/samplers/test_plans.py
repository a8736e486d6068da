"""Properties of plans besides their results: calls, timesteps, starts, slots and caching."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sd2rt.engines.bundle.sampler_config import STATE_SLOTS, PredictionType, SamplerName
from sd2rt.runtime.samplers import SamplingOptions, make_plan
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule

from .cases import (
    BOUND,
    DISTILLED,
    EXPLODING,
    NAMES,
    PREDICTIONS,
    TWO_CALLS,
    config_of,
    noise_config,
)
from .reference_schedulers import Draws, float64_tables, follow, fresh_scheduler, relative_error


def test_a_strength_is_truncated_as_a_product_of_floats() -> None:
    for name in NAMES:
        for steps, strength, left in ((50, 0.58, 28), (100, 0.29, 28), (10, 0.999, 9), (10, 1.0, 10)):
            if steps > 50 and name in DISTILLED:
                continue
            plan = make_plan(noise_config(), config_of(name), SamplingOptions(steps, strength=strength))
            calls = 2 * left - 1 if name in TWO_CALLS else left + 1 if name == "pndm" else left
            assert len(plan.steps) == calls


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_a_late_start_of_ddim_is_the_rest_of_its_custom_timesteps(eta: float) -> None:
    timesteps = (999, 750, 400, 33, 2)
    whole = make_plan(noise_config(), config_of("ddim"), SamplingOptions(timesteps=timesteps, eta=eta))
    late = make_plan(
        noise_config(), config_of("ddim"), SamplingOptions(timesteps=timesteps, eta=eta, strength=0.6)
    )
    a = NoiseSchedule(noise_config()).alphas_cumprod[400]
    assert late.start_noise == pytest.approx((math.sqrt(a), math.sqrt(1 - a)), rel=1e-15)
    for ours, theirs in zip(late.steps, whole.steps[2:], strict=True):
        assert ours.timestep == theirs.timestep
        np.testing.assert_array_equal(ours.update, theirs.update)


def test_a_late_start_of_pndm_uses_timesteps_a_stride_below_the_samples_noise() -> None:
    options = {strength: SamplingOptions(10, strength=strength) for strength in (1.0, 0.9, 0.7, 0.1)}
    timesteps = {
        strength: [step.timestep for step in make_plan(noise_config(), config_of("pndm"), option).steps]
        for strength, option in options.items()
    }
    assert timesteps[1.0] == [901, 801, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert timesteps[0.9] == [801, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert timesteps[0.7] == [701, 601, 501, 401, 301, 201, 101, 1]
    assert timesteps[0.1] == [101, 1]


def test_a_plan_is_cached_and_read_only() -> None:
    plan = make_plan(noise_config(), config_of("pndm"), SamplingOptions(7))
    assert make_plan(noise_config(), config_of("pndm"), SamplingOptions(7)) is plan
    assert len(plan.steps) == 8
    with pytest.raises(ValueError, match="read-only"):
        plan.steps[0].update[0, 0] = 1


def test_the_start_of_euler_is_as_noisy_as_its_spacing_says() -> None:
    largest = NoiseSchedule(noise_config()).sigmas[999]
    for spacing in ("linspace", "trailing"):
        plan = make_plan(noise_config(), config_of("euler", spacing), SamplingOptions(10))
        assert plan.init_scale == pytest.approx(largest)
    leading = make_plan(noise_config(), config_of("euler", "leading"), SamplingOptions(10))
    sigma = NoiseSchedule(noise_config()).sigmas[901]
    assert leading.init_scale == pytest.approx(math.sqrt(sigma**2 + 1))


def test_custom_timesteps_that_are_a_spacings_give_its_plan() -> None:
    noise = noise_config()
    for name in ("ddim", "dpmpp-2m", "euler"):
        config = config_of(name, "trailing")
        spaced = make_plan(noise, config, SamplingOptions(20))
        listed = make_plan(noise, config, SamplingOptions(timesteps=tuple(s.timestep for s in spaced.steps)))
        for ours, theirs in zip(listed.steps, spaced.steps, strict=True):
            np.testing.assert_array_equal(ours.update, theirs.update)


class Stride:
    """Fake number of steps: diffusers' DDIM uses it only to compute the length of a step."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __rfloordiv__(self, total: int) -> int:
        return self.length


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("set_alpha_to_one", [False, True])
def test_custom_timesteps_of_ddim_go_from_each_to_the_next(
    set_alpha_to_one: bool, eta: float, prediction_type: PredictionType
) -> None:
    noise, config = noise_config(prediction_type), config_of("ddim", set_alpha_to_one=set_alpha_to_one)
    timesteps = (999, 750, 400, 33, 2)
    draws = Draws.seeded(len(timesteps))

    scheduler = fresh_scheduler(noise, config)
    samples = []
    with float64_tables(scheduler):
        sample = torch.from_numpy(draws.start)
        for i, (timestep, target) in enumerate(zip(timesteps, (*timesteps[1:], -1), strict=True)):
            scheduler.num_inference_steps = Stride(timestep - target)
            output, fresh = torch.from_numpy(draws.outputs[i]), torch.from_numpy(draws.noises[i])
            sample = scheduler.step(output, timestep, sample, eta=eta, variance_noise=fresh).prev_sample
            samples.append(sample.numpy())

    actual = follow(make_plan(noise, config, SamplingOptions(timesteps=timesteps, eta=eta)), draws)
    assert relative_error(actual.samples, np.array(samples)) <= BOUND


SLOTS: dict[SamplerName, int] = {
    "ddim": 1,
    "ddpm": 1,
    "pndm": 5,
    "lms": 4,
    "euler": 1,
    "euler-a": 1,
    "heun": 3,
    "restart": 3,
    "dpm2": 2,
    "dpm2-a": 2,
    "dpmpp-2s": 4,
    "dpmpp-2s-a": 2,
    "dpmpp-2m": 3,
    "dpmpp-2m-sde": 3,
    "dpmpp-3m-sde": 3,
    "dpmpp-sde": 3,
    "dpm-fast": 3,
    "deis": 3,
    "unipc": 4,
    "ipndm": 4,
    "sa-solver": 4,
    "lcm": 1,
    "tcd": 1,
}
"""The most latents in a sampler's state."""


@pytest.mark.parametrize("name", NAMES)
def test_unused_slots_stay_zero(name: SamplerName) -> None:
    for step in make_plan(noise_config(), config_of(name), SamplingOptions(20)).steps:
        assert not step.update[SLOTS[name] :].any()
        assert not step.update[:, SLOTS[name] : STATE_SLOTS].any()
        assert not step.weights[1:].any()
        assert step.update.dtype == step.weights.dtype == np.float64


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_is_as_noisy_as_the_step_says(name: SamplerName) -> None:
    plan = make_plan(noise_config(), config_of(name), SamplingOptions(20))
    table = NoiseSchedule(noise_config()).sigmas
    timesteps = [step.timestep for step in plan.steps]
    expected = np.interp(timesteps, np.arange(1000), table)
    # Samplers interpolate timesteps in log(sigma), but levels linearly.
    np.testing.assert_allclose([step.level for step in plan.steps], expected, rtol=6e-3)
    for step in plan.steps:
        scale = 1 / math.sqrt(step.level**2 + 1) if name in EXPLODING else 1
        assert step.weights[0] == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_draws_none_uses_none(name: SamplerName) -> None:
    for eta in (0.0, 0.3) if name in ("ddim", "tcd", "dpm-fast") else (0.0,):
        plan = make_plan(noise_config(), config_of(name), SamplingOptions(5, eta=eta))
        assert not any(step.update[:, -1].any() for step in plan.steps if not step.draws_noise)
