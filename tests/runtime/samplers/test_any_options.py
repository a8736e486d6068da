"""Random combinations of options, compared with diffusers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from sd2rt.engines.bundle.sampler_config import (
    CHOICES,
    SAMPLER_OPTIONS,
    NoiseConfig,
    SamplerConfig,
    SamplerName,
    Spacing,
    default_sampler,
)
from sd2rt.engines.errors import RequestError
from sd2rt.export.checkpoints.scheduler_table import SCHEDULERS
from sd2rt.runtime.samplers import SamplingOptions, make_plan
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.plan import Plan

from .cases import (
    BOUND,
    COMPARED,
    CUT_OFF,
    DISTILLED,
    EXPLODING,
    LOOKED_UP,
    OPTION_VALUES,
    PREDICTIONS,
    PRESERVING,
    assert_close,
    assert_like_diffusers,
    compared,
    config_of,
    levels_of,
    noise_config,
)
from .reference_schedulers import Draws, Trajectory, reference, relative_error

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
    # diffusers takes the logarithm of noise level 0, or divides by the length of an empty step.
    pytest.mark.filterwarnings("ignore:divide by zero|invalid value:RuntimeWarning"),
]

ROOT_BOUND = 1e-7
"""Bound for steps whose amount of noise is the root of a float64 rounding error, about 1e-15, which differs between
mathematics libraries: a last step that draws noise and stays at its level, and DDIM's first with zero SNR, eta 1."""

drawn = settings(max_examples=20, deadline=None, derandomize=True, phases=[Phase.generate])


def configurations(name: SamplerName) -> st.SearchStrategy[SamplerConfig]:
    options: dict[str, st.SearchStrategy[Any]] = {}
    for option in SAMPLER_OPTIONS[name]:
        values = CHOICES.get(name, {}).get(option) or OPTION_VALUES.get(option, ())
        options[option] = st.sampled_from(levels_of(name) if option == "levels" else values)
    options["steps_offset"] = st.integers(0, 3)
    return st.builds(lambda **chosen: default_sampler(name, **chosen), **options)


def noises(name: SamplerName) -> st.SearchStrategy[Any]:
    zero_snr = name in SCHEDULERS and SCHEDULERS[name].zero_snr
    return st.builds(
        noise_config,
        st.sampled_from(PREDICTIONS),
        num_train_timesteps=st.sampled_from([60, 1000]),
        beta_schedule=st.sampled_from(["linear", "scaled_linear"]),
        beta_end=st.sampled_from([0.006, 0.012, 0.02]),
        rescale_betas_zero_snr=st.sampled_from([False, False, zero_snr]),
    )


def diffusers_is_broken(noise: Any, config: SamplerConfig, options: SamplingOptions) -> bool:
    """True if diffusers raises, computes NaN or inf, or reads its tables at timestep -1, from their other end."""
    try:
        actual = reference(noise, config, options, Draws.seeded(2 * noise.num_train_timesteps + 10))
    except (IndexError, ValueError, NotImplementedError, UnboundLocalError, RuntimeError):
        return True
    wraps = config.name in LOOKED_UP and bool((actual.timesteps < 0).any())
    return wraps or not np.isfinite(actual.samples).all()


@pytest.mark.parametrize("name", COMPARED)
@drawn
@given(data=st.data())
def test_any_options(name: SamplerName, data: st.DataObject) -> None:
    noise, config = data.draw(noises(name)), data.draw(configurations(name))
    most = min(noise.num_train_timesteps, 35)
    strength = data.draw(st.sampled_from([None, None, 1.0, 0.58, 0.3]))
    steps = data.draw(
        st.integers(1, min(most, config.original_inference_steps) if name in DISTILLED else most)
    )
    eta = data.draw(st.sampled_from([0.0, 0.5, 1.0])) if name in ("ddim", "tcd") else 0.0
    assume(strength is None or int(steps * strength) > 0)
    assume(config.original_inference_steps <= noise.num_train_timesteps)
    # The late start and tau of sa-solver look up timesteps.
    assume(name != "sa-solver" or config.levels not in CUT_OFF)
    # If the table's levels are not increasing, the last bit decides which of two timesteps belongs to a level.
    assume(config.levels == "spaced" or (np.diff(NoiseSchedule(noise).sigmas) > 0).all())
    options = SamplingOptions(steps, eta=eta, strength=strength)
    try:
        plan = make_plan(noise, config, options)
    except RequestError as refusal:
        if "Runge-Kutta" in str(refusal) and strength is not None:
            return  # diffusers passes one timestep to the network and uses the noise level of another.
        if "no third order" in str(refusal):
            return  # diffusers fails only once it reaches such a step.
        if "lambda_min_clipped" in str(refusal):
            return  # diffusers' pipelines have no timestep left to start from.
        # A list is refused if any part of it is broken, even one that a late start would skip.
        assert diffusers_is_broken(noise, config, replace(options, strength=None))
        return
    if name == "pndm" and noise.prediction_type == "sample":
        return
    actual, expected = compared(noise, config, options)
    assert np.isfinite(actual.samples).all()
    broken = [not np.isfinite(sample).all() for sample in expected.samples]
    if any(broken):
        if name == "ddim":
            # Rounding makes 1 - a - variance negative, and diffusers takes its root.
            assert (eta, noise.rescale_betas_zero_snr) == (1, True)
            return
        assert broken == [False] * (len(broken) - 1) + [True]
        assert_the_last_step_is_documented(config, actual)
        if len(broken) == 1:
            return
        actual, expected = (replace(one, samples=one.samples[:-1]) for one in (actual, expected))
    if name in PRESERVING and config.levels in CUT_OFF:
        assert np.abs(actual.timesteps - expected.timesteps).max() <= 1
        actual = replace(actual, timesteps=expected.timesteps)
    if draws_noise_in_place(noise, config, plan):
        assert relative_error(actual.samples[-1:], expected.samples[-1:]) <= ROOT_BOUND
        actual, expected = (replace(one, samples=one.samples[:-1]) for one in (actual, expected))
    # In the first step with zero SNR, 1 - a - variance is a rounding error, whose root is taken.
    rooted = (name, eta, noise.rescale_betas_zero_snr) == ("ddim", 1, True)
    if len(actual.samples):
        assert_close(actual, expected, ROOT_BOUND if rooted else BOUND)


def draws_noise_in_place(noise: NoiseConfig, config: SamplerConfig, plan: Plan) -> bool:
    """True if the last step goes from the lowest level to itself and draws noise."""
    stays = config.name == "sa-solver" or config.final_sigmas_type == "sigma_min"
    return (
        stays
        and plan.steps[-1].draws_noise
        and plan.steps[-1].level == pytest.approx(NoiseSchedule(noise).sigmas[0], rel=1e-9)
    )


def assert_the_last_step_is_documented(config: SamplerConfig, actual: Trajectory) -> None:
    """diffusers multiplies an infinite step of UniPC's bh1 by zero, and divides by the length of a last step that
    stays at its level; ours leaves the sample unchanged."""
    if config.name == "unipc" and config.solver_type == "bh1" and config.final_sigmas_type == "zero":
        return
    assert config.final_sigmas_type == "sigma_min"
    if config.name != "unipc":  # unipc corrects the sample once more
        np.testing.assert_allclose(actual.samples[-1], actual.samples[-2], rtol=1e-9)


custom = [name for name in COMPARED if name not in ("ddim", "pndm")]


@pytest.mark.parametrize("name", custom)
@settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])
@given(data=st.data())
def test_any_custom_timesteps(name: SamplerName, data: st.DataObject) -> None:
    noise = noise_config(data.draw(st.sampled_from(PREDICTIONS)))
    chosen = data.draw(st.sets(st.integers(1, 999), min_size=1, max_size=20))
    options = SamplingOptions(
        timesteps=tuple(sorted(chosen, reverse=True)), strength=data.draw(st.sampled_from([None, 1.0]))
    )
    assert_like_diffusers(noise, config_of(name, "linspace"), options)


@pytest.mark.parametrize("name", [name for name in COMPARED if name not in LOOKED_UP])
@settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])
@given(data=st.data())
def test_any_custom_sigmas(name: SamplerName, data: st.DataObject) -> None:
    """Of diffusers' classes only Euler's supports custom sigmas; the others get them as the levels of a rule."""
    noise = noise_config(data.draw(st.sampled_from(PREDICTIONS)))
    steps = data.draw(st.integers(1, 12))
    logarithms = np.sort(np.array(data.draw(st.lists(st.floats(-3.4, 2.6), min_size=steps, max_size=steps))))
    assume(steps == 1 or np.diff(logarithms).min() > 0.01)
    end = 0.01 if name in ("deis", "sa-solver") else 0.0
    options = SamplingOptions(sigmas=(*np.exp(logarithms)[::-1].tolist(), end))
    spacings: tuple[Spacing, ...] = ("linspace", "leading") if name in EXPLODING else ("linspace",)
    spacing = data.draw(st.sampled_from(spacings))
    assert_like_diffusers(noise, config_of(name, spacing), options)
