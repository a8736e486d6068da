"""Shared by the tests of samplers: SD2's noise schedule, values of all options, and the comparison with diffusers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np

from sd2rt.engines.bundle.sampler_config import (
    SAMPLER_OPTIONS,
    Levels,
    NoiseConfig,
    PredictionType,
    SamplerConfig,
    SamplerName,
    Spacing,
    default_sampler,
)
from sd2rt.export.checkpoints.scheduler_table import SCHEDULERS
from sd2rt.runtime.samplers import SamplingOptions, make_plan

from .reference_schedulers import NO_SAMPLE_PREDICTION, Draws, Trajectory, follow, reference, trajectory_error

BOUND = 1e-9
"""The documented bound is 1e-5, but both sides are float64, so any error near that would be a mistake."""

NAMES: tuple[SamplerName, ...] = get_args(SamplerName)
K_DIFFUSION: tuple[SamplerName, ...] = ("restart", "dpmpp-2s-a", "dpmpp-3m-sde", "dpm-fast")
"""Samplers that diffusers does not have: test_k_diffusion.py compares them with k-diffusion's formulas."""
COMPARED = tuple(name for name in NAMES if name not in K_DIFFUSION)
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)
PREDICTIONS: tuple[PredictionType, ...] = get_args(PredictionType)
STEPS = (1, 2, 3, 5, 10, 20, 50, 100)

DISTILLED = ("lcm", "tcd")
"""Samplers that choose among the timesteps that their model was distilled with."""
LOOKED_UP = ("ddim", "ddpm", "pndm", *DISTILLED)
"""Samplers limited to the noise levels of whole timesteps."""
EXPLODING = ("lms", "euler", "euler-a", "heun", "dpm2", "dpm2-a", "dpmpp-sde", *K_DIFFUSION)
TWO_CALLS = ("heun", "dpm2", "dpm2-a", "dpmpp-sde", "dpmpp-2s-a", "restart")
"""Variance-exploding samplers that call the network twice per step, except in the last."""
PRESERVING = tuple(name for name in NAMES if name not in (*LOOKED_UP, *EXPLODING))

CUT_OFF = ("exponential", "beta")
"""Rules whose timesteps PRESERVING samplers truncate. The last bit decides between two timesteps, and the plans
follow diffusers' float32."""

OPTION_VALUES: dict[str, tuple[Any, ...]] = {
    "spacing": SPACINGS,
    "set_alpha_to_one": (False, True),
    "final_sigmas_type": ("zero", "sigma_min"),
    "solver_order": (1, 2, 3, 4),
    "corrector_order": (1, 2, 3),
    "predict_x0": (True, False),
    "lower_order_final": (True, False),
    "euler_at_final": (False, True),
    "disable_corrector": ((), (0,), (1, 3)),
    "skip_prk_steps": (True, False),
    "variance_type": ("fixed_small", "fixed_large"),
    "interpolation_type": ("linear", "log_linear"),
    "sigma_min": (None, 0.05),
    "sigma_max": (None, 9.0),
    "lambda_min_clipped": (None, -1.3),
    "s_churn": (0.0, 3.0, 50.0),
    "s_tmin": (0.0, 0.5),
    "s_tmax": (None, 8.0),
    "s_noise": (1.0, 1.007, 0.0),
    "tau": (1.0, 0.4, 0.0),
    "tau_start": (200.0, 0.0),
    "tau_end": (800.0, 1000.0),
    "original_inference_steps": (50, 40, 100),
    "timestep_scaling": (10.0, 3.0),
}
"""Values of every option to test, unless CHOICES lists those of the sampler."""


def levels_of(name: SamplerName) -> tuple[Levels, ...]:
    """Rules for noise levels that diffusers has for a sampler; euler-a and ipndm use those of another class."""
    if name == "euler-a":
        return SCHEDULERS["euler"].levels
    if name == "ipndm":
        return SCHEDULERS["dpmpp-2m"].levels
    return SCHEDULERS[name].levels


def noise_config(prediction_type: PredictionType = "epsilon", **changes: Any) -> NoiseConfig:
    sd2: dict[str, Any] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction_type,
    }
    return NoiseConfig(**sd2 | changes)


def config_of(name: SamplerName, spacing: Spacing | None = None, **options: Any) -> SamplerConfig:
    if spacing is not None and "spacing" in SAMPLER_OPTIONS[name]:
        options["spacing"] = spacing
    return default_sampler(name, **options)


def compared(
    noise: NoiseConfig, config: SamplerConfig, options: SamplingOptions
) -> tuple[Trajectory, Trajectory]:
    """Compute our trajectory and diffusers'; exceptions of make_plan and diffusers propagate.

    A class without clean-image predictions gets the noise that they imply.
    """
    plan = make_plan(noise, config, options)
    draws = Draws.seeded(len(plan.steps))
    clean = noise.prediction_type == "sample" and config.name in NO_SAMPLE_PREDICTION
    levels = [step.level for step in plan.steps] if clean else None
    expected = reference(noise, config, options, draws, shown_levels=levels, from_the_first=True)
    return follow(plan, draws), expected


def assert_close(actual: Trajectory, expected: Trajectory, bound: float = BOUND) -> None:
    np.testing.assert_allclose(actual.timesteps, expected.timesteps, rtol=BOUND, atol=BOUND)
    assert actual.drawn == expected.drawn
    assert np.isfinite(actual.samples).all()
    assert trajectory_error(actual, expected) <= bound


def assert_like_diffusers(noise: NoiseConfig, config: SamplerConfig, options: SamplingOptions) -> None:
    actual, expected = compared(noise, config, options)
    if config.name in PRESERVING and config.levels in CUT_OFF:
        assert np.abs(actual.timesteps - expected.timesteps).max() <= 1
        actual = replace(actual, timesteps=expected.timesteps)
    assert_close(actual, expected)
