"""diffusers' schedulers as the reference for samplers, run in float64 and in their usual float32.

Both use the betas of :mod:`rounded_betas`, which are the same on every processor; diffusers' own betas are not.

Both sides get the same random "network outputs" and the same noises, so a trajectory tests only the sampler. Random
outputs are a harder test than a network's, because nothing smooths errors away.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from inspect import signature
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, IPNDMScheduler, StableDiffusionImg2ImgPipeline
from numpy.typing import NDArray

from sd2rt.engines.bundle.sampler_config import STATE_SLOTS, NoiseConfig, SamplerConfig, default_sampler
from sd2rt.export.checkpoints.scheduler_table import SCHEDULERS
from sd2rt.export.reference import make_scheduler, step_arguments
from sd2rt.runtime.samplers import SamplingOptions, make_plan
from sd2rt.runtime.samplers.plan import Plan

from .rounded_betas import rounded_betas

Array = NDArray[np.float64]

SHAPE = (1, 4, 4, 4)


@dataclass(frozen=True)
class Draws:
    """Input of both sides of a comparison: initial noise and image, and for each network call an output and noise."""

    start: Array
    outputs: Array  # [calls, *SHAPE]
    noises: Array  # [calls, *SHAPE]
    image: Array

    @classmethod
    def seeded(cls, calls: int, seed: int = 0) -> Draws:
        rng = np.random.default_rng(seed)
        return cls(*(rng.standard_normal((*lead, *SHAPE)) for lead in ((), (calls,), (calls,), ())))


@dataclass(frozen=True)
class Trajectory:
    start: Array
    timesteps: Array  # [calls]
    inputs: Array  # [calls, *SHAPE], input of the network
    samples: Array  # [calls, *SHAPE], sample after each call
    drawn: tuple[int, ...]
    """Calls after which fresh noise was drawn."""


def follow(plan: Plan, draws: Draws) -> Trajectory:
    """Apply a plan in float64 as the denoiser does, with zeros for noise that is not drawn."""
    state = np.zeros((STATE_SLOTS, *SHAPE))
    if plan.start_noise is None:
        state[0] = plan.init_scale * draws.start
    else:
        state[0] = plan.start_noise[0] * draws.image + plan.start_noise[1] * draws.start
    start = state[0]
    inputs, samples = [], []
    for step, output, noise in zip(plan.steps, draws.outputs, draws.noises, strict=True):
        inputs.append(np.tensordot(step.weights, state, 1))
        fresh = noise if step.draws_noise else np.zeros(SHAPE)
        state = np.tensordot(step.update, np.concatenate([state, output[None], fresh[None]]), 1)
        samples.append(state[0])
    timesteps = np.array([step.timestep for step in plan.steps])
    drawn = tuple(i for i, step in enumerate(plan.steps) if step.draws_noise)
    return Trajectory(start, timesteps, np.array(inputs), np.array(samples), drawn)


@dataclass
class Noises:
    """Noises of a trajectory: a scheduler's draw in its n-th call gets the n-th, and must happen only once."""

    values: torch.Tensor  # [calls, *SHAPE]
    call: int = 0
    drawn: list[int] = field(default_factory=list)
    half: tuple[Any, Any, torch.Tensor] | None = None

    def draw(self, *_: Any, **__: Any) -> torch.Tensor:
        """Replacement of ``randn_tensor``."""
        assert self.call not in self.drawn
        self.drawn.append(self.call)
        return self.values[self.call]

    def path(self, sigma: Any, sigma_next: Any) -> torch.Tensor:
        """Replacement of DPMSolverSDEScheduler's ``noise_sampler``: unit-variance increments of a Brownian path.

        The scheduler requests the first half of a step, then the whole step, which includes that half.
        """
        fresh = self.draw()
        if self.half is None:
            self.half = (sigma, sigma_next, fresh)
            return fresh
        (begin, middle, first), self.half = self.half, None
        whole: torch.Tensor = (begin - middle) ** 0.5 * first + (middle - sigma_next) ** 0.5 * fresh
        whole /= (begin - sigma_next) ** 0.5
        return whole


class _Widened:
    """torch or NumPy with float64 as float32, because diffusers' schedulers use float32 by name."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


class _WithTimesteps(_Widened):
    """NumPy whose linspace returns custom timesteps, for classes without custom timesteps.

    Some classes request one timestep more than there are steps, and drop it.
    """

    def __init__(self, module: Any, timesteps: tuple[float, ...]) -> None:
        super().__init__(module)
        self._rising = np.array(timesteps[::-1], np.float64)

    def linspace(self, *arguments: Any, **_: Any) -> Array:
        return np.concatenate([np.zeros(arguments[2] - len(self._rising)), self._rising])


@contextmanager
def float64_tables(*schedulers: Any, timesteps: tuple[float, ...] | None = None) -> Iterator[None]:
    """Make schedulers compute everything but their float32 betas in float64."""
    usual = torch.get_default_dtype()
    with ExitStack() as patches:
        for scheduler in schedulers:
            _widen(scheduler)
            numpy = _Widened(np) if timesteps is None else _WithTimesteps(np, timesteps)
            module = sys.modules[type(scheduler).__module__]
            patches.enter_context(patch.multiple(module, torch=_Widened(torch), np=numpy))
        torch.set_default_dtype(torch.float64)
        patches.callback(torch.set_default_dtype, usual)
        yield


def _widen(scheduler: Any) -> None:
    if not hasattr(scheduler, "alphas_cumprod"):
        return
    least_signal = float(scheduler.alphas_cumprod[-1])
    a = torch.cumprod(1 - scheduler.betas.double(), 0)
    if least_signal == 2**-24:
        a[-1] = least_signal
    scheduler.alphas_cumprod = a
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = torch.ones_like(a[0]) if scheduler.config.set_alpha_to_one else a[0]
    if hasattr(scheduler, "lambda_t"):
        scheduler.lambda_t = torch.log(a.sqrt()) - torch.log((1 - a).sqrt())


@lru_cache(maxsize=512)
def _cached_scheduler(noise: NoiseConfig, config: SamplerConfig) -> Any:
    name = SCHEDULERS[config.name].name
    scheduler_class = getattr(diffusers, name)
    module = sys.modules[scheduler_class.__module__]
    with_betas = partial(scheduler_class, trained_betas=list(rounded_betas(noise)))
    with ExitStack() as patches:
        # Some constructors slowly set all training timesteps, which are replaced before the first use.
        patches.enter_context(patch.object(scheduler_class, "set_timesteps", _set_none))
        patches.enter_context(patch.object(diffusers, name, with_betas))
        if hasattr(module, "rescale_zero_terminal_snr"):
            # The betas are rescaled already.
            patches.enter_context(patch.object(module, "rescale_zero_terminal_snr", lambda betas: betas))
        return make_scheduler(noise, config)


def _set_none(scheduler: Any, *_: Any) -> None:
    scheduler.sigmas = torch.zeros(1)


def fresh_scheduler(noise: NoiseConfig, config: SamplerConfig) -> Any:
    """Copy a cached scheduler; a shallow copy is enough, because its methods replace values and change none."""
    return copy.copy(_cached_scheduler(noise, config))


def _pair(noise: NoiseConfig, config: SamplerConfig, options: SamplingOptions) -> tuple[Any, Any]:
    """Return the scheduler that makes the steps and the one with the levels.

    They are the same, except for two samplers that diffusers has with other levels.
    """
    if config.name == "ipndm":
        names = ("spacing", "levels", "steps_offset", "final_sigmas_type")
        alike = default_sampler("dpmpp-2m", **{name: getattr(config, name) for name in names})
        return IPNDMScheduler(noise.num_train_timesteps), _with_levels(noise, alike, options)
    if config.name == "euler-a" and (config.levels != "spaced" or options.sigmas is not None):
        plain = config.model_copy(update={"levels": "spaced"})
        alike = config.model_copy(update={"name": "euler"})
        return fresh_scheduler(noise, plain), fresh_scheduler(noise, alike)
    scheduler = _with_levels(noise, config, options)
    return scheduler, scheduler


def _with_levels(noise: NoiseConfig, config: SamplerConfig, options: SamplingOptions) -> Any:
    """Make a scheduler that accepts custom sigmas, as levels of a rule with the same conversion to timesteps."""
    if options.sigmas is not None and config.name != "euler":
        preserving = hasattr(_cached_scheduler(noise, config), "lambda_t")
        config = config.model_copy(update={"levels": "karras" if preserving else "exponential"})
    return fresh_scheduler(noise, config)


def set_timesteps(scheduler: Any, options: SamplingOptions) -> None:
    taken = signature(scheduler.set_timesteps).parameters
    if options.num_inference_steps is not None:
        scheduler.set_timesteps(options.num_inference_steps)
    elif options.timesteps is not None:
        if "timesteps" in taken:
            scheduler.set_timesteps(timesteps=list(options.timesteps))
        else:
            scheduler.set_timesteps(len(options.timesteps))
    elif isinstance(scheduler, EulerDiscreteScheduler):
        scheduler.set_timesteps(sigmas=list(options.sigmas or ()))
    else:
        sigmas = np.array(options.sigmas)
        scheduler._convert_to_karras = scheduler._convert_to_exponential = lambda **_: sigmas[:-1]
        scheduler.set_timesteps(len(sigmas) - 1)
        scheduler.sigmas[-1] = sigmas[-1]


def _lend_levels(levels: Any, scheduler: Any) -> None:
    if isinstance(scheduler, IPNDMScheduler):
        # This class calls sigma "betas".
        scheduler.alphas = 1 / (levels.sigmas**2 + 1) ** 0.5
        scheduler.betas = levels.sigmas * scheduler.alphas
    scheduler.timesteps, scheduler.sigmas = levels.timesteps, levels.sigmas


def start_of(
    scheduler: Any, levels: Any, options: SamplingOptions, draws: Draws, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the timesteps of diffusers' pipelines, and the initial sample."""
    noise = torch.from_numpy(draws.start).to(dtype)
    if options.strength is None:
        return scheduler.timesteps, noise * scheduler.init_noise_sigma
    # The pipelines count the values of a custom list.
    pipeline: Any = SimpleNamespace(scheduler=scheduler)
    timesteps, _ = StableDiffusionImg2ImgPipeline.get_timesteps(
        pipeline, options.step_count, options.strength, "cpu"
    )
    if levels is not scheduler:
        levels.set_begin_index(scheduler.begin_index)
    return timesteps, levels.add_noise(torch.from_numpy(draws.image).to(dtype), noise, timesteps[:1])


NO_SAMPLE_PREDICTION = ("pndm", "euler-a", "dpm2", "dpm2-a", "dpmpp-sde")
"""Samplers whose diffusers class does not support networks that predict the clean image."""


def _as_noise(shown: torch.Tensor, clean: torch.Tensor, level: float) -> torch.Tensor:
    """Convert a clean-image prediction to noise, for a network input of a noise-to-signal ratio."""
    alpha = 1 / (level**2 + 1) ** 0.5
    noise: torch.Tensor = (shown - alpha * clean) / (alpha * level)
    return noise


def _velocity(scheduler: Any, kind: str, sample: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Convert an output to a v-prediction, the only kind that IPNDMScheduler supports."""
    if kind == "v_prediction":
        return output
    if scheduler.step_index is None:
        scheduler._init_step_index(scheduler.timesteps[0])
    alpha, sigma = scheduler.alphas[scheduler.step_index], scheduler.betas[scheduler.step_index]
    eps = output if kind == "epsilon" else (sample - alpha * output) / sigma
    velocity: torch.Tensor = (eps - sigma * sample) / alpha
    return velocity


def reference(
    noise: NoiseConfig,
    config: SamplerConfig,
    options: SamplingOptions,
    draws: Draws,
    dtype: torch.dtype = torch.float64,
    shown_levels: Sequence[float] | None = None,
    from_the_first: bool = False,
) -> Trajectory:
    """Compute diffusers' trajectory with the loop of its pipelines; its exceptions propagate.

    With ``shown_levels``, the outputs are clean images, converted to noise at these levels for the classes of
    NO_SAMPLE_PREDICTION. ``from_the_first`` makes a scheduler begin at its first timestep; otherwise it looks the
    timestep up, and uses the second of two equal ones.
    """
    if shown_levels is not None:
        noise = noise.model_copy(update={"prediction_type": "epsilon"})
    scheduler, levels = _pair(noise, config, options)
    noises = Noises(torch.from_numpy(draws.noises).to(dtype))
    module = sys.modules[type(scheduler).__module__]
    custom = None if "timesteps" in signature(levels.set_timesteps).parameters else options.timesteps
    with ExitStack() as patches:
        if dtype is torch.float64:
            both = (scheduler,) if levels is scheduler else (scheduler, levels)
            patches.enter_context(float64_tables(*both, timesteps=custom))
        if hasattr(module, "randn_tensor"):
            patches.enter_context(patch.object(module, "randn_tensor", noises.draw))
        set_timesteps(levels, options)
        if levels is not scheduler:
            _lend_levels(levels, scheduler)
        if hasattr(scheduler, "noise_sampler"):
            scheduler.noise_sampler = noises.path
        arguments = {} if config.name == "ipndm" else step_arguments(config)
        if "eta" in signature(scheduler.step).parameters:
            arguments["eta"] = options.eta
        timesteps, start = start_of(scheduler, levels, options, draws, dtype)
        if from_the_first and options.strength is None and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        sample = start
        inputs, samples = [], []
        for noises.call, timestep in enumerate(timesteps):
            inputs.append(scheduler.scale_model_input(sample, timestep))
            output = torch.from_numpy(draws.outputs[noises.call]).to(dtype)
            if shown_levels is not None:
                output = _as_noise(inputs[-1], output, shown_levels[noises.call])
            if config.name == "ipndm":
                output = _velocity(scheduler, noise.prediction_type, sample, output)
                # Its order is 4 once it has three earlier noises; keep fewer for a lower order.
                scheduler.ets = scheduler.ets[::-1][: config.solver_order - 1][::-1]
            sample = scheduler.step(output, timestep, sample, **arguments).prev_sample
            assert sample.dtype is dtype
            samples.append(sample)
    return Trajectory(
        start.double().numpy(),
        timesteps.double().numpy(),
        torch.stack(inputs).double().numpy(),
        torch.stack(samples).double().numpy(),
        tuple(noises.drawn),
    )


def relative_error(actual: Array, expected: Array) -> float:
    """Largest difference of any call, relative to the call's largest value."""
    axes = tuple(range(1, expected.ndim))
    worst = np.abs(actual - expected).max(axis=axes) / np.abs(expected).max(axis=axes)
    return float(worst.max())


def trajectory_error(actual: Trajectory, expected: Trajectory) -> float:
    """Largest relative error of the start, and of the samples and network inputs of every call."""
    return max(
        relative_error(actual.start, expected.start),
        relative_error(actual.samples, expected.samples),
        relative_error(actual.inputs, expected.inputs),
    )


@dataclass(frozen=True)
class Deviation:
    """Errors against diffusers in float64: of our plan, and of diffusers in float32."""

    table: float
    diffusers_float32: float


def deviation(
    noise: NoiseConfig, config: SamplerConfig, options: SamplingOptions, seed: int = 0
) -> Deviation:
    """Compute both errors; exceptions of diffusers and make_plan propagate."""
    plan = make_plan(noise, config, options)
    draws = Draws.seeded(len(plan.steps), seed)
    expected = reference(noise, config, options, draws)
    single = reference(noise, config, options, draws, torch.float32)
    return Deviation(trajectory_error(follow(plan, draws), expected), trajectory_error(single, expected))
