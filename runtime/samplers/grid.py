"""The noise levels that a trajectory goes through, and the timesteps that they are told as."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from sd2rt.engines.bundle.sampler_config import SamplerConfig
from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Float64Array
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

_SHORT = 1e-3


@dataclass(frozen=True, slots=True)
class Grid:
    """N steps: N timesteps, N + 1 noise levels (noise-to-signal ratios), and the step at which a late start enters.

    Lists, for arithmetic one number at a time.
    """

    timesteps: list[float]
    levels: list[float]
    start: int

    @property
    def count(self) -> int:
        return len(self.timesteps)


def variance_exploding(
    noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions, *, whole: bool = False
) -> Grid:
    """For samplers whose state is x_0 + sigma eps: timesteps may be fractions.

    Noise levels between two training timesteps are interpolated. The other rules take the place of the spaced
    timesteps' levels, between their first and last; ``whole`` rounds the timesteps of karras levels.

    Raises RequestError for eta.
    """
    refuse_eta(config, options)
    total = noise.config.num_train_timesteps
    start = start_index(total, options)
    if options.sigmas is not None:
        refuse_levels(config, "sigmas")
        told = timesteps_of(noise, np.array(options.sigmas[:-1]))
        return Grid(told.tolist(), list(options.sigmas), start)
    if options.timesteps is not None:
        refuse_levels(config, "timesteps")
        timesteps = custom(total, options.timesteps, whole=False)
    else:
        timesteps = spaced(total, step_count(total, options), config.spacing, config.steps_offset)
    final = 0.0 if config.final_sigmas_type == "zero" else float(noise.sigmas[0])
    levels = np.interp(timesteps, np.arange(total), noise.sigmas)
    if config.interpolation_type == "log_linear":
        # One level more than there are steps: the last is what the last step leaves, whatever the final one.
        levels = exponential(noise.sigmas[0], noise.sigmas[-1], len(timesteps) + 1)
        final = float(levels[-1])
    if config.levels == "spaced":
        return Grid(timesteps.tolist(), [*levels[: len(timesteps)].tolist(), final], start)
    chosen = _chosen(config, float(levels[-1]), float(levels[0]), options.step_count)
    told = timesteps_of(noise, chosen)
    if whole and config.levels == "karras":
        told = told.round()
    if config.interpolation_type == "log_linear":
        final = 0.0 if config.final_sigmas_type == "zero" else float(noise.sigmas[0])
    return Grid(told.tolist(), [*chosen.tolist(), final], start)


def exploding_scale(grid: Grid, config: SamplerConfig) -> float:
    """What unit noise is multiplied with to be the start of a variance-exploding state.

    Leading spacing starts below the noisiest level, and diffusers then gives the start its signal's variance too;
    it asks the configured spacing even where the request's own list takes its place.
    """
    largest = max(grid.levels)
    return sqrt(largest**2 + 1) if config.spacing == "leading" else largest


def variance_preserving(
    noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions, *, repeat_last: bool = False
) -> Grid:
    """For samplers whose state is alpha x_0 + sigma eps, alpha**2 + sigma**2 = 1: timesteps are whole.

    The other rules take the place of the spaced timesteps' levels, over the whole schedule; karras' and lambdas'
    timesteps are rounded, the others' cut off, as diffusers does. ``repeat_last``: where those end above no noise,
    they end at their own last level, not at the schedule's lowest.

    Raises RequestError for eta, and for a late start after the last timestep that lambda_min_clipped leaves.
    """
    refuse_eta(config, options)
    total = noise.config.num_train_timesteps
    start = start_index(total, options)
    if options.sigmas is not None:
        refuse_levels(config, "sigmas")
        told = timesteps_of(noise, np.array(options.sigmas[:-1])).round()
        return Grid(told.tolist(), list(options.sigmas), start)
    if options.timesteps is not None:
        refuse_levels(config, "timesteps")
        timesteps = custom(total, options.timesteps, whole=True)
    else:
        timesteps = _whole(noise, config, step_count(total, options))
    if start >= len(timesteps):
        raise RequestError(
            f"lambda_min_clipped {config.lambda_min_clipped} leaves {len(timesteps)} of {options.step_count} steps, "
            f"and strength {options.strength} none of them: give a higher strength"
        )
    final = 0.0 if config.final_sigmas_type == "zero" else float(noise.sigmas[0])
    if config.levels == "spaced":
        levels = np.interp(timesteps, np.arange(total), noise.sigmas)
        return Grid(timesteps.tolist(), [*levels.tolist(), final], start)
    chosen = _chosen(config, float(noise.sigmas[0]), float(noise.sigmas[-1]), options.step_count)
    told = timesteps_of(noise, chosen)
    # In diffusers' float32 the highest level comes out just short of the last timestep, and is cut to the one before.
    cut = config.levels in ("exponential", "beta")
    told = np.trunc(np.maximum(told - _SHORT, 0)) if cut else told.round()
    if repeat_last and final > 0:
        final = float(chosen[-1])
    return Grid(told.tolist(), [*chosen.tolist(), final], start)


def _whole(noise: NoiseSchedule, config: SamplerConfig, count: int) -> Float64Array:
    total = noise.config.num_train_timesteps
    last = total
    if config.lambda_min_clipped is not None:
        lambdas = -noise.log_sigmas[::-1]
        last -= int(np.searchsorted(lambdas, config.lambda_min_clipped))
    if config.spacing == "trailing":
        return np.arange(last, 0, -total / count).round() - 1
    # One more than there are steps: the lowest is where the last step would end, and is not visited.
    return spaced(last, count + 1, config.spacing, config.steps_offset)[:-1].round()


def _chosen(config: SamplerConfig, lowest: float, highest: float, count: int) -> Float64Array:
    low = lowest if config.sigma_min is None else config.sigma_min
    high = highest if config.sigma_max is None else config.sigma_max
    if config.levels == "karras":
        return karras(low, high, count)
    if config.levels == "beta":
        return beta(low, high, count)
    if config.levels == "ays":
        return ays(count)[:-1]
    return exponential(low, high, count)
