"""Noise levels of a trajectory, and the timesteps that the network receives for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Float64Array
from sd2rt.runtime.samplers.a1111.level_lists import level_list
from sd2rt.runtime.samplers.a1111.model_levels import ModelLevels
from sd2rt.runtime.samplers.a1111.timestep_lists import uneven_walk
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.sigma_schedules import ays, beta, exponential, karras
from sd2rt.runtime.samplers.timesteps import (
    custom,
    refuse_eta,
    refuse_levels,
    spaced,
    start_index,
    step_count,
    timesteps_of,
)

_TRUNCATION_MARGIN = 1e-3


@dataclass(frozen=True, slots=True)
class Grid:
    """N timesteps, N + 1 noise levels (noise-to-signal ratios), and the index of the first step.

    Lists instead of arrays, because samplers compute with single numbers.
    """

    timesteps: list[float]
    levels: list[float]
    start: int
    end_timestep: float | None = None
    """Timestep of the last level, for methods that call the network there; None if they must not."""
    scale: float = 1.0
    """Scale of unit noise at the start of a variance-preserving trajectory."""
    end_scale: float = 1.0
    """Scale of a variance-preserving trajectory's result."""
    path: tuple[float, float] | None = None
    """Ends of the Brownian path that gives the noise of SDE samplers; None if they draw independent noise."""
    conversions: list[tuple[float, float]] | None = None
    """alpha and sigma of each step for converting a v-prediction, if they differ from those of its level."""
    start_noise: tuple[float, float] | None = None
    """Factors of image and noise at the start, if they differ from those of the first level."""

    @property
    def count(self) -> int:
        return len(self.timesteps)

    def interval(self, index: int) -> tuple[float, float] | None:
        """Levels between which the Brownian path gives a step's noise; None without a path, and to level 0."""
        ends = self.levels[index], self.levels[index + 1]
        return ends if self.path is not None and ends[1] > 0 else None


def variance_exploding(
    noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions, *, round_karras: bool = False
) -> Grid:
    """Make the grid of a sampler whose state is x_0 + sigma eps; timesteps may be fractions.

    Noise levels between two training timesteps are interpolated. A rule for levels (karras, ...) replaces the levels
    of spaced timesteps, between the first and the last of them; ``round_karras`` rounds the timesteps of karras.

    Raises:
        RequestError: eta is set, or an option is not supported.
    """
    refuse_eta(config, options)
    if options.a1111 is not None:
        return _a1111(noise, config, options)
    total = noise.config.num_train_timesteps
    start = start_index(total, options)
    if options.sigmas is not None:
        refuse_levels(config, "sigmas")
        sigma_timesteps = timesteps_of(noise, np.array(options.sigmas[:-1]))
        return Grid(sigma_timesteps.tolist(), list(options.sigmas), start)
    if options.timesteps is not None:
        refuse_levels(config, "timesteps")
        timesteps = custom(total, options.timesteps, whole=False)
    else:
        timesteps = spaced(total, step_count(total, options), config.spacing, config.steps_offset)
    final = 0.0 if config.final_sigmas_type == "zero" else float(noise.sigmas[0])
    levels = np.interp(timesteps, np.arange(total), noise.sigmas)
    if config.interpolation_type == "log_linear":
        # One level more than there are steps: the last one replaces the configured final level.
        levels = exponential(noise.sigmas[0], noise.sigmas[-1], len(timesteps) + 1)
        final = float(levels[-1])
    if config.levels == "spaced":
        return Grid(timesteps.tolist(), [*levels[: len(timesteps)].tolist(), final], start)
    rule_levels = _levels_by_rule(config, float(levels[-1]), float(levels[0]), options.step_count)
    rule_timesteps = timesteps_of(noise, rule_levels)
    if round_karras and config.levels == "karras":
        rule_timesteps = rule_timesteps.round()
    if config.interpolation_type == "log_linear":
        final = 0.0 if config.final_sigmas_type == "zero" else float(noise.sigmas[0])
    return Grid(rule_timesteps.tolist(), [*rule_levels.tolist(), final], start)


def exploding_scale(grid: Grid, config: SamplerConfig) -> float:
    """Scale of unit noise at the start of a variance-exploding trajectory.

    Leading spacing starts below the highest noise level, and diffusers then adds the signal's variance. Like
    diffusers, this depends on the configured spacing, even with custom timesteps or sigmas.
    """
    largest = max(grid.levels)
    return sqrt(largest**2 + 1) if config.spacing == "leading" else largest


def midpoints(
    noise: NoiseSchedule, levels: Sequence[float], ends: Iterable[float]
) -> tuple[list[float], list[float]]:
    """Return the noise level halfway in log(sigma) between each step's level and its end, and its timestep."""
    middles = [sqrt(sigma * end) for sigma, end in zip(levels, ends, strict=False)]
    timesteps: list[float] = timesteps_of(noise, np.array(middles)).tolist()
    return middles, timesteps


def variance_preserving(
    noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions, *, repeat_last: bool = False
) -> Grid:
    """Make the grid of a sampler whose state is alpha x_0 + sigma eps, alpha**2 + sigma**2 = 1; timesteps are whole.

    A rule for levels (karras, ...) replaces the levels of spaced timesteps, over the whole schedule. As in diffusers,
    the timesteps of karras and lambdas are rounded, those of other rules truncated. With ``repeat_last``, such levels
    end at their own last level instead of the schedule's lowest, unless they end at 0.

    Raises:
        RequestError: eta is set, or the strength leaves no timestep after lambda_min_clipped.
    """
    refuse_eta(config, options)
    if options.a1111 is not None:
        return _a1111(noise, config, options)
    total = noise.config.num_train_timesteps
    start = start_index(total, options)
    if options.sigmas is not None:
        refuse_levels(config, "sigmas")
        sigma_timesteps = timesteps_of(noise, np.array(options.sigmas[:-1])).round()
        return Grid(sigma_timesteps.tolist(), list(options.sigmas), start)
    if options.timesteps is not None:
        refuse_levels(config, "timesteps")
        timesteps = custom(total, options.timesteps, whole=True)
    else:
        timesteps = _whole_timesteps(noise, config, step_count(total, options))
    if start >= len(timesteps):
        raise RequestError(
            f"lambda_min_clipped {config.lambda_min_clipped} leaves {len(timesteps)} of {options.step_count} steps, "
            f"and strength {options.strength} none of them: use a higher strength"
        )
    final = 0.0 if config.final_sigmas_type == "zero" else float(noise.sigmas[0])
    if config.levels == "spaced":
        levels = np.interp(timesteps, np.arange(total), noise.sigmas)
        return Grid(timesteps.tolist(), [*levels.tolist(), final], start)
    rule_levels = _levels_by_rule(config, float(noise.sigmas[0]), float(noise.sigmas[-1]), options.step_count)
    exact = timesteps_of(noise, rule_levels)
    # In diffusers' float32 the highest level is slightly below the last timestep and is truncated to the one before.
    truncate = config.levels in ("exponential", "beta")
    rule_timesteps = np.trunc(np.maximum(exact - _TRUNCATION_MARGIN, 0)) if truncate else exact.round()
    if repeat_last and final > 0:
        final = float(rule_levels[-1])
    return Grid(rule_timesteps.tolist(), [*rule_levels.tolist(), final], start)


def _a1111(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> Grid:
    """Make AUTOMATIC1111's grid, which starts at the first step that is made."""
    if config.name == "unipc":
        uneven = uneven_walk(noise, options, config.solver_order)
        return Grid(
            uneven.timesteps, uneven.levels, 0, conversions=uneven.conversions, start_noise=uneven.entry
        )
    made = level_list(config.name, ModelLevels(noise), options)
    timesteps = timesteps_of(noise, np.array(made.levels)).tolist()
    first, last = made.levels[0], made.levels[-1]
    return Grid(
        timesteps[:-1],
        made.levels,
        0,
        end_timestep=timesteps[-1] if last > 0 else None,
        scale=first / sqrt(first**2 + 1),
        end_scale=sqrt(last**2 + 1),
        path=(made.lowest, made.highest),
    )


def _whole_timesteps(noise: NoiseSchedule, config: SamplerConfig, count: int) -> Float64Array:
    total = noise.config.num_train_timesteps
    last = total
    if config.lambda_min_clipped is not None:
        lambdas = -noise.log_sigmas[::-1]
        last -= int(np.searchsorted(lambdas, config.lambda_min_clipped))
    if config.spacing == "trailing":
        return np.arange(last, 0, -total / count).round() - 1
    # One more than there are steps: the lowest is the end of the last step, and is not visited.
    return spaced(last, count + 1, config.spacing, config.steps_offset)[:-1].round()


def _levels_by_rule(config: SamplerConfig, lowest: float, highest: float, count: int) -> Float64Array:
    low = lowest if config.sigma_min is None else config.sigma_min
    high = highest if config.sigma_max is None else config.sigma_max
    if config.levels == "karras":
        return karras(low, high, count)
    if config.levels == "beta":
        return beta(low, high, count)
    if config.levels == "ays":
        return ays(count)[:-1]
    return exponential(low, high, count)
