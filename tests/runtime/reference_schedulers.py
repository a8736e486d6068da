"""diffusers' schedulers as the reference of the samplers: driven in float64, and in their own float32.

Both sides are given the same random "network outputs", so a trajectory tests the sampler alone. Random
outputs are a harder test than a network's: nothing smooths an error away.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
)
from numpy.typing import NDArray

from sd2rt.engines.sampling import STATE_SLOTS, NoiseConfig, SamplerConfig, SamplerName
from sd2rt.runtime.plan import Plan
from sd2rt.runtime.samplers import SamplingOptions, make_plan

Array = NDArray[np.float64]

SHAPE = (1, 4, 4, 4)

SCHEDULERS: dict[SamplerName, Any] = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmpp-2m": DPMSolverMultistepScheduler,
}


@dataclass(frozen=True)
class Draws:
    """What both sides of a comparison share: unit noise and an image to start from, and per step an output and
    fresh noise."""

    start: Array
    outputs: Array  # [steps, *SHAPE]
    noises: Array  # [steps, *SHAPE]
    image: Array

    @classmethod
    def seeded(cls, steps: int, seed: int = 0) -> Draws:
        rng = np.random.default_rng(seed)
        return cls(*(rng.standard_normal((*lead, *SHAPE)) for lead in ((), (steps,), (steps,), ())))


@dataclass(frozen=True)
class Trajectory:
    start: Array
    timesteps: Array  # [steps]
    inputs: Array  # [steps, *SHAPE], what the network is shown
    samples: Array  # [steps, *SHAPE], what each step leaves


def follow(plan: Plan, draws: Draws) -> Trajectory:
    """A plan applied in float64, as the denoiser applies it."""
    state = np.zeros((STATE_SLOTS, *SHAPE))
    if plan.start_noise is None:
        state[0] = plan.init_scale * draws.start
    else:
        state[0] = plan.start_noise[0] * draws.image + plan.start_noise[1] * draws.start
    start = state[0]
    inputs, samples = [], []
    for step, output, noise in zip(plan.steps, draws.outputs, draws.noises, strict=True):
        inputs.append(np.tensordot(step.weights, state, 1))
        state = np.tensordot(step.update, np.concatenate([state, output[None], noise[None]]), 1)
        samples.append(state[0])
    timesteps = np.array([step.timestep for step in plan.steps])
    return Trajectory(start, timesteps, np.array(inputs), np.array(samples))


def make_scheduler(noise: NoiseConfig, config: SamplerConfig) -> Any:
    arguments: dict[str, Any] = {
        "num_train_timesteps": noise.num_train_timesteps,
        "beta_start": noise.beta_start,
        "beta_end": noise.beta_end,
        "beta_schedule": noise.beta_schedule,
        "prediction_type": noise.prediction_type,
        "timestep_spacing": config.spacing,
        "steps_offset": config.steps_offset,
    }
    if config.name in ("ddim", "pndm"):
        arguments["set_alpha_to_one"] = config.set_alpha_to_one
    else:
        arguments["final_sigmas_type"] = config.final_sigma
    if config.name == "ddim":
        arguments["clip_sample"] = False
    if config.name == "pndm":
        arguments["skip_prk_steps"] = True
    if config.name == "dpmpp-2m":
        arguments["lower_order_final"] = config.lower_order_final
        arguments["solver_type"] = config.solver_type
    return SCHEDULERS[config.name](**arguments)


def set_timesteps(scheduler: Any, options: SamplingOptions) -> None:
    if options.timesteps is not None:
        scheduler.set_timesteps(timesteps=list(options.timesteps))
    elif options.sigmas is not None:
        scheduler.set_timesteps(sigmas=list(options.sigmas))
    else:
        scheduler.set_timesteps(options.num_inference_steps)


class _Widened:
    """torch or NumPy, whose float32 is float64: diffusers' schedulers name float32 where they round."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


@contextmanager
def float64_tables(scheduler: Any) -> Iterator[None]:
    """Everything that follows from the scheduler's own float32 betas, in float64."""
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    if hasattr(scheduler, "final_alpha_cumprod"):
        one = torch.tensor(1.0, dtype=torch.float64)
        scheduler.final_alpha_cumprod = (
            one if scheduler.config.set_alpha_to_one else scheduler.alphas_cumprod[0]
        )
    module = sys.modules[type(scheduler).__module__]
    with patch.multiple(module, torch=_Widened(torch), np=_Widened(np)):
        yield


def start_of(
    scheduler: Any, options: SamplingOptions, draws: Draws, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The timesteps that diffusers' pipelines go through, and the sample that they start from."""
    noise = torch.from_numpy(draws.start).to(dtype)
    if options.strength is None:
        return scheduler.timesteps, noise * scheduler.init_noise_sigma
    # The pipelines count a list's values, not what they asked set_timesteps for.
    count = options.num_inference_steps or len(scheduler.timesteps)
    pipeline: Any = SimpleNamespace(scheduler=scheduler)
    timesteps, _ = StableDiffusionImg2ImgPipeline.get_timesteps(pipeline, count, options.strength, "cpu")
    return timesteps, scheduler.add_noise(torch.from_numpy(draws.image).to(dtype), noise, timesteps[:1])


def drive(scheduler: Any, options: SamplingOptions, draws: Draws, dtype: torch.dtype) -> Trajectory:
    """The loop of diffusers' pipelines over a scheduler whose timesteps are set."""
    timesteps, start = start_of(scheduler, options, draws, dtype)
    sample = start
    inputs, samples = [], []
    for i, timestep in enumerate(timesteps):
        inputs.append(scheduler.scale_model_input(sample, timestep))
        extra: dict[str, Any] = {}
        if isinstance(scheduler, DDIMScheduler):
            extra = {"eta": options.eta, "variance_noise": torch.from_numpy(draws.noises[i]).to(dtype)}
        output = torch.from_numpy(draws.outputs[i]).to(dtype)
        sample = scheduler.step(output, timestep, sample, **extra).prev_sample
        assert sample.dtype is dtype
        samples.append(sample)
    return Trajectory(
        start.double().numpy(),
        timesteps.double().numpy(),
        torch.stack(inputs).double().numpy(),
        torch.stack(samples).double().numpy(),
    )


def reference(
    noise: NoiseConfig,
    config: SamplerConfig,
    options: SamplingOptions,
    draws: Draws,
    dtype: torch.dtype = torch.float64,
) -> Trajectory:
    """diffusers' trajectory; raises what diffusers raises."""
    scheduler = make_scheduler(noise, config)
    if dtype is torch.float32:
        set_timesteps(scheduler, options)
        return drive(scheduler, options, draws, dtype)
    with float64_tables(scheduler):
        set_timesteps(scheduler, options)
        return drive(scheduler, options, draws, dtype)


def relative_error(found: Array, expected: Array) -> float:
    """The worst step's largest difference, relative to that step's largest value."""
    axes = tuple(range(1, expected.ndim))
    worst = np.abs(found - expected).max(axis=axes) / np.abs(expected).max(axis=axes)
    return float(worst.max())


@dataclass(frozen=True)
class Deviation:
    """How far from diffusers run in float64: our table, and diffusers in its own float32."""

    table: float
    diffusers_float32: float


def deviation(
    noise: NoiseConfig, config: SamplerConfig, options: SamplingOptions, seed: int = 0
) -> Deviation:
    """Over samples and network inputs of every step. Raises what diffusers or make_plan raise."""
    plan = make_plan(noise, config, options)
    draws = Draws.seeded(len(plan.steps), seed)
    expected = reference(noise, config, options, draws)
    single = reference(noise, config, options, draws, torch.float32)
    table = follow(plan, draws)

    def worst(found: Trajectory) -> float:
        return max(
            relative_error(found.samples, expected.samples), relative_error(found.inputs, expected.inputs)
        )

    return Deviation(worst(table), worst(single))
