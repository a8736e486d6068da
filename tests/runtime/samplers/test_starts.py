"""Initial latents of trajectories, computed in float32 by the runtime, compared with diffusers'."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sd2rt.engines.bundle.sampler_config import SamplerName
from sd2rt.runtime.denoising.trajectory import Trajectory
from sd2rt.runtime.prompts.text_conditioning import TextConditioning
from sd2rt.runtime.rng.torch_cpu import Generator
from sd2rt.runtime.samplers import SamplingOptions, make_plan
from sd2rt.runtime.samplers.plan import Plan

from .cases import COMPARED, config_of, noise_config
from .reference_schedulers import SHAPE, Array, Draws, reference, relative_error


def trajectory(plan: Plan, noise: Array, image: Array | None) -> Trajectory:
    return Trajectory(
        plan=plan,
        latents=noise.astype(np.float32),
        texts=(TextConditioning((np.zeros((77, 8), np.float32),)),) * len(plan.steps),
        guidance=np.tile(np.array([1, 0], np.float32), (len(plan.steps), 1)),
        generator=Generator(0),
        seed=0,
        image_latents=None if image is None else image.astype(np.float32),
    )


@pytest.mark.parametrize("strength", [None, 0.58])
@pytest.mark.parametrize("name", COMPARED)
def test_a_trajectory_starts_where_diffusers_does(name: SamplerName, strength: float | None) -> None:
    noise, config, options = noise_config(), config_of(name), SamplingOptions(10, strength=strength)
    plan, draws = make_plan(noise, config, options), Draws.seeded(20)
    expected = reference(noise, config, options, draws, torch.float32).start
    actual = trajectory(plan, draws.start[0], None if strength is None else draws.image[0])
    assert actual.latents.dtype == np.float32
    assert relative_error(actual.latents[None].astype(np.float64), expected) < 1e-6


@pytest.mark.parametrize("levels", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("strength", [1.0, 0.58])
def test_sa_solver_starts_late_at_its_timesteps_noise(strength: float, levels: str) -> None:
    config, options = config_of("sa-solver", levels=levels), SamplingOptions(20, strength=strength)
    plan, draws = make_plan(noise_config(), config, options), Draws.seeded(20)
    expected = reference(noise_config(), config, options, draws, torch.float32)
    np.testing.assert_array_equal([step.timestep for step in plan.steps], expected.timesteps)
    actual = trajectory(plan, draws.start[0], draws.image[0])
    assert relative_error(actual.latents[None].astype(np.float64), expected.start) < 1e-6


@pytest.mark.parametrize(
    ("strength", "image_shape", "message"),
    [
        (None, SHAPE[1:], "got image latents, but the plan starts from noise"),
        (0.5, None, "there are no image latents"),
        (0.5, (1, 4, 4), r"image latents of shape \[1, 4, 4\] do not match noise of shape \[4, 4, 4\]"),
    ],
)
def test_a_trajectory_needs_what_its_plan_starts_from(
    strength: float | None, image_shape: tuple[int, ...] | None, message: str
) -> None:
    plan = make_plan(noise_config(), config_of("ddim"), SamplingOptions(5, strength=strength))
    image = None if image_shape is None else np.zeros(image_shape)
    with pytest.raises(ValueError, match=message):
        trajectory(plan, np.zeros(SHAPE[1:]), image)
