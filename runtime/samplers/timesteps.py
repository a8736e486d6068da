"""Timesteps of a trajectory: the spacings of arXiv:2305.08891, table 2, or custom timesteps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.sampler_config import SamplerConfig, Spacing
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.sigma_schedules import ays


def spaced(total: int, count: int, spacing: Spacing, offset: int) -> NDArray[np.float64]:
    """Space ``count`` of ``total`` training timesteps, in decreasing order.

    linspace: from the last timestep to 0, not rounded. leading: multiples of a whole stride, plus ``offset``.
    trailing: down from the last timestep, rounded; for a few counts (61 of 1000 is the first), rounding adds a
    timestep -1, as in diffusers.
    """
    if spacing == "linspace":
        return np.linspace(0, total - 1, count)[::-1]
    if spacing == "leading":
        return np.arange(count, dtype=np.float64)[::-1] * (total // count) + offset
    return np.arange(total, 0, -total / count).round() - 1


def step_count(total: int, options: SamplingOptions) -> int:
    """Check the number of steps of options that set it.

    Raises:
        RequestError: there are more steps than timesteps.
    """
    count = options.num_inference_steps
    assert count is not None
    if count > total:
        raise RequestError(
            f"num_inference_steps is {count}: the schedule has {total} timesteps, use at most {total}"
        )
    return count


def custom(total: int, timesteps: tuple[float, ...], *, whole: bool) -> NDArray[np.float64]:
    """Check custom timesteps, which are decreasing already, against the schedule; ``whole`` refuses fractions."""
    if timesteps[0] > total - 1:
        raise RequestError(
            f"timesteps holds {timesteps[0]}: the schedule ends at {total - 1}, use no higher ones"
        )
    if whole and any(timestep != int(timestep) for timestep in timesteps):
        fraction = next(timestep for timestep in timesteps if timestep != int(timestep))
        raise RequestError(
            f"timesteps holds {fraction}: use whole numbers, or the sampler euler, which accepts fractions"
        )
    return np.array(timesteps, np.float64)


def table_indices(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> list[int]:
    """Compute whole timesteps within the schedule, for samplers that look up the noise schedule at each."""
    total = noise.config.num_train_timesteps
    if options.timesteps is not None:
        refuse_levels(config, "timesteps")
        return [int(timestep) for timestep in custom(total, options.timesteps, whole=True)]
    count = step_count(total, options)
    if config.levels == "ays":
        timesteps = [int(timestep) for timestep in timesteps_of(noise, ays(count)[:-1]).round()]
        if len(set(timesteps)) < count:
            raise RequestError(
                f"{config.name} with the ays schedule repeats timesteps in {count} steps: use fewer steps"
            )
        return timesteps
    exact = spaced(total, count, config.spacing, config.steps_offset)
    timesteps = [int(timestep) for timestep in exact.round()]
    for timestep in (timesteps[0], timesteps[-1]):
        if not 0 <= timestep < total:
            raise RequestError(
                f"{config.name} with {config.spacing} spacing and steps_offset {config.steps_offset} puts "
                f"one of {count} steps at timestep {timestep}, outside 0 to {total - 1}: "
                f"use another number of steps or another spacing"
            )
    return timesteps


def timesteps_of(noise: NoiseSchedule, levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert noise levels to timesteps, which may be fractions; levels outside the schedule map to its ends.

    log(sigma) is interpolated linearly, in diffusers' order of operations: some samplers truncate the result, and
    rounding must not move a whole timestep to the other side.
    """
    table = noise.log_sigmas
    log_levels = np.log(np.maximum(levels, 1e-10))
    low = np.clip(np.searchsorted(table, log_levels, side="right") - 1, 0, len(table) - 2)
    fraction = np.clip((table[low] - log_levels) / (table[low] - table[low + 1]), 0, 1)
    timesteps: NDArray[np.float64] = (1 - fraction) * low + fraction * (low + 1)
    return timesteps


def start_index(total: int, options: SamplingOptions) -> int:
    """Index of the first timestep that a trajectory visits: 0, or later as the strength requires.

    Like diffusers' ``get_timesteps``: of N requested steps, N * strength remain, truncated with its rounding error
    (50 * 0.58 gives 28). A list longer than N (PNDM's, or a trailing one with an additional timestep) starts at the
    same index and so has more steps.

    Raises:
        RequestError: the strength leaves no step.
    """
    if options.strength is None:
        return 0
    count, strength = options.step_count, options.strength
    remaining = int(count * strength)
    if remaining == 0:
        # Rounded up to a few more digits than the count has: short to type, and safe against rounding.
        scale = 10 ** (len(str(count)) + 2)
        remedy = f"use a strength of at least {-(-scale // count) / scale:g}"
        if 1 / strength <= total:
            steps = int(1 / strength)
            remedy += f", or at least {steps if int(steps * strength) else steps + 1} steps"
        raise RequestError(
            f"strength {strength} leaves none of {count} step{'' if count == 1 else 's'}: {remedy}"
        )
    return count - remaining


def refuse_levels(config: SamplerConfig, name: str) -> None:
    """Raise RequestError if custom timesteps or sigmas are combined with a rule for noise levels."""
    if config.levels != "spaced":
        raise RequestError(
            f"custom {name} cannot be combined with the schedule {config.levels}: leave one of them out"
        )


def refuse_sigmas(config: SamplerConfig, options: SamplingOptions) -> None:
    if options.sigmas is not None:
        raise RequestError(
            f"{config.name} does not support custom sigmas: leave them out, or use the sampler euler"
        )


def refuse_eta(config: SamplerConfig, options: SamplingOptions) -> None:
    if options.eta != 0:
        raise RequestError(f"{config.name} does not support eta: leave it out, or use the sampler ddim")
