"""diffusers' schedulers as the reference of the samplers: driven in float64, and in their own float32.

Both start from the betas of :mod:`rounded_betas`, which are the same on every processor; diffusers' own are not.

Both sides are given the same random "network outputs" and the same noises, so a trajectory tests the sampler
alone. Random outputs are a harder test than a network's: nothing smooths an error away.
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
    """What both sides of a comparison share: unit noise and an image to start from, and per network call an output
    and fresh noise."""

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
    inputs: Array  # [calls, *SHAPE], what the network is shown
    samples: Array  # [calls, *SHAPE], what each call leaves
    drawn: tuple[int, ...]
    """The calls after which fresh noise was drawn."""


def follow(plan: Plan, draws: Draws) -> Trajectory:
    """A plan applied in float64, as the denoiser applies it: noise is zeros where none is drawn."""
    state = np.zeros((STATE_SLOTS, *SHAPE))
    if plan.start_noise is None:
        state[0] = plan.init_scale * draws.start
    else:
        state[0] = plan.start_noise[0] * draws.image + plan.start_noise[1] * draws.start
    start = state[0]
    inputs, samples = [], []
    for step, output, noise in zip(plan.steps, draws.outputs, draws.noises, strict=True):
        inputs.append(np.tensordot(step.weights, state, 1))
        given = noise if step.draws_noise else np.zeros(SHAPE)
        state = np.tensordot(step.update, np.concatenate([state, output[None], given[None]]), 1)
        samples.append(state[0])
    timesteps = np.array([step.timestep for step in plan.steps])
    drawn = tuple(i for i, step in enumerate(plan.steps) if step.draws_noise)
    return Trajectory(start, timesteps, np.array(inputs), np.array(samples), drawn)


@dataclass
class Noises:
    """The noises of a trajectory: what a scheduler draws in its n-th call is the n-th, and it draws it once."""

    given: torch.Tensor  # [calls, *SHAPE]
    call: int = 0
    drawn: list[int] = field(default_factory=list)
    half: tuple[Any, Any, torch.Tensor] | None = None

    def draw(self, *_: Any, **__: Any) -> torch.Tensor:
        """In the place of randn_tensor."""
        assert self.call not in self.drawn
        self.drawn.append(self.call)
        return self.given[self.call]

    def path(self, sigma: Any, sigma_next: Any) -> torch.Tensor:
        """In the place of DPMSolverSDEScheduler's noise_sampler: increments of a Brownian path over sigma, of unit
        variance. The scheduler asks for half of a step, then for the whole; the whole holds the half."""
        fresh = self.draw()
        if self.half is None:
            self.half = (sigma, sigma_next, fresh)
            return fresh
        (begin, middle, first), self.half = self.half, None
        whole: torch.Tensor = (begin - middle) ** 0.5 * first + (middle - sigma_next) ** 0.5 * fresh
        whole /= (begin - sigma_next) ** 0.5
        return whole


class _Widened:
    """torch or NumPy, whose float32 is float64: diffusers' schedulers name float32 where they round."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


class _WithTimesteps(_Widened):
    """NumPy, whose linspace gives a request's own timesteps, for classes that take none.

    A list that is one longer than the steps has their end in it, which such classes leave out.
    """

    def __init__(self, module: Any, timesteps: tuple[float, ...]) -> None:
        super().__init__(module)
        self._rising = np.array(timesteps[::-1], np.float64)

    def linspace(self, *arguments: Any, **_: Any) -> Array:
        return np.concatenate([np.zeros(arguments[2] - len(self._rising)), self._rising])


@contextmanager
def float64_tables(*schedulers: Any, timesteps: tuple[float, ...] | None = None) -> Iterator[None]:
    """Everything that follows from the schedulers' float32 betas, in float64."""
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
def _made(noise: NoiseConfig, config: SamplerConfig) -> Any:
    name = SCHEDULERS[config.name].name
    scheduler_class = getattr(diffusers, name)
    module = sys.modules[scheduler_class.__module__]
    with_betas = partial(scheduler_class, trained_betas=list(rounded_betas(noise)))
    with ExitStack() as patches:
        # Some set all training timesteps when they are made, slowly, only to have others set before their first use.
        patches.enter_context(patch.object(scheduler_class, "set_timesteps", _set_none))
        patches.enter_context(patch.object(diffusers, name, with_betas))
        if hasattr(module, "rescale_zero_terminal_snr"):
            # The betas are rescaled already.
            patches.enter_context(patch.object(module, "rescale_zero_terminal_snr", lambda betas: betas))
        return make_scheduler(noise, config)


def _set_none(scheduler: Any, *_: Any) -> None:
    scheduler.sigmas = torch.zeros(1)


def fresh_scheduler(noise: NoiseConfig, config: SamplerConfig) -> Any:
    """A scheduler of one's own: its methods put new values in the place of old ones, and change none."""
    return copy.copy(_made(noise, config))


def _pair(noise: NoiseConfig, config: SamplerConfig, options: SamplingOptions) -> tuple[Any, Any]:
    """The scheduler that takes the steps, and the one that has the levels: the same, but for two samplers that
    diffusers has on other levels."""
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
    """A scheduler that can be given custom sigmas, if only by the rule whose timesteps are told as theirs are."""
    if options.sigmas is not None and config.name != "euler":
        preserving = hasattr(_made(noise, config), "lambda_t")
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
        # Its betas are what others call sigma.
        scheduler.alphas = 1 / (levels.sigmas**2 + 1) ** 0.5
        scheduler.betas = levels.sigmas * scheduler.alphas
    scheduler.timesteps, scheduler.sigmas = levels.timesteps, levels.sigmas


def start_of(
    scheduler: Any, levels: Any, options: SamplingOptions, draws: Draws, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The timesteps that diffusers' pipelines go through, and the sample that they start from."""
    noise = torch.from_numpy(draws.start).to(dtype)
    if options.strength is None:
        return scheduler.timesteps, noise * scheduler.init_noise_sigma
    # The pipelines count a list's values, not what they asked set_timesteps for.
    pipeline: Any = SimpleNamespace(scheduler=scheduler)
    timesteps, _ = StableDiffusionImg2ImgPipeline.get_timesteps(
        pipeline, options.step_count, options.strength, "cpu"
    )
    if levels is not scheduler:
        levels.set_begin_index(scheduler.begin_index)
    return timesteps, levels.add_noise(torch.from_numpy(draws.image).to(dtype), noise, timesteps[:1])


NO_SAMPLE_PREDICTION = ("pndm", "euler-a", "dpm2", "dpm2-a", "dpmpp-sde")
"""Samplers whose diffusers class does not know a network that predicts the clean image."""


def _as_noise(shown: torch.Tensor, clean: torch.Tensor, level: float) -> torch.Tensor:
    """The noise of what a network is shown at a noise-to-signal ratio, by the clean image that it predicts."""
    alpha = 1 / (level**2 + 1) ** 0.5
    noise: torch.Tensor = (shown - alpha * clean) / (alpha * level)
    return noise


def _velocity(scheduler: Any, kind: str, sample: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """What IPNDMScheduler is given: it knows v-predictions alone."""
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
    """diffusers' trajectory, by the loop of its pipelines; raises what diffusers raises.

    With ``shown_levels`` the outputs are clean images that are turned into noises of these levels, for the
    classes of NO_SAMPLE_PREDICTION. With ``from_the_first`` a scheduler is told that it begins at its first
    timestep. It looks that up otherwise, and takes the second of two that are the same.
    """
    if shown_levels is not None:
        noise = noise.model_copy(update={"prediction_type": "epsilon"})
    scheduler, levels = _pair(noise, config, options)
    noises = Noises(torch.from_numpy(draws.noises).to(dtype))
    module = sys.modules[type(scheduler).__module__]
    own = None if "timesteps" in signature(levels.set_timesteps).parameters else options.timesteps
    with ExitStack() as patches:
        if dtype is torch.float64:
            both = (scheduler,) if levels is scheduler else (scheduler, levels)
            patches.enter_context(float64_tables(*both, timesteps=own))
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
                # It is of order 4 once it remembers three noises.
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
    """The worst call's largest difference, relative to that call's largest value."""
    axes = tuple(range(1, expected.ndim))
    worst = np.abs(actual - expected).max(axis=axes) / np.abs(expected).max(axis=axes)
    return float(worst.max())


def trajectory_error(actual: Trajectory, expected: Trajectory) -> float:
    """The worst of the samples and network inputs of every call, and of the start."""
    return max(
        relative_error(actual.start, expected.start),
        relative_error(actual.samples, expected.samples),
        relative_error(actual.inputs, expected.inputs),
    )


@dataclass(frozen=True)
class Deviation:
    """How far from diffusers run in float64: our table, and diffusers in its own float32."""

    table: float
    diffusers_float32: float


def deviation(
    noise: NoiseConfig, config: SamplerConfig, options: SamplingOptions, seed: int = 0
) -> Deviation:
    """Over samples and network inputs of every call. Raises what diffusers or make_plan raise."""
    plan = make_plan(noise, config, options)
    draws = Draws.seeded(len(plan.steps), seed)
    expected = reference(noise, config, options, draws)
    single = reference(noise, config, options, draws, torch.float32)
    return Deviation(trajectory_error(follow(plan, draws), expected), trajectory_error(single, expected))
