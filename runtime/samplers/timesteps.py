"""Which timesteps a trajectory visits: the spacings of arXiv:2305.08891, table 2, or a request's list."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.sampler_config import SamplerConfig, Spacing
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule
from sd2rt.runtime.samplers.options import SamplingOptions
from sd2rt.runtime.samplers.sigma_schedules import ays


def spaced(total: int, count: int, spacing: Spacing, offset: int) -> NDArray[np.float64]:
    """``count`` of ``total`` training timesteps, falling.

    linspace: from the last to timestep 0, not rounded. leading: whole strides up from ``offset``. trailing:
    whole numbers down from the last; for a few counts (61 of 1000 is the first) the stride's rounding adds
    a timestep -1, as it does in diffusers.
    """
    if spacing == "linspace":
        return np.linspace(0, total - 1, count)[::-1]
    if spacing == "leading":
        return np.arange(count, dtype=np.float64)[::-1] * (total // count) + offset
    return np.arange(total, 0, -total / count).round() - 1


def step_count(total: int, options: SamplingOptions) -> int:
    """The request's number of steps, where it gives that."""
    count = options.num_inference_steps
    assert count is not None
    if count > total:
        raise RequestError(
            f"num_inference_steps is {count}: the schedule has {total} timesteps, give at most {total}"
        )
    return count


def custom(total: int, timesteps: tuple[float, ...], *, whole: bool) -> NDArray[np.float64]:
    """A request's own timesteps, which SamplingOptions has seen to be falling."""
    if timesteps[0] > total - 1:
        raise RequestError(
            f"timesteps holds {timesteps[0]}: the schedule ends at {total - 1}, give none above"
        )
    if whole and any(timestep != int(timestep) for timestep in timesteps):
        fraction = next(timestep for timestep in timesteps if timestep != int(timestep))
        raise RequestError(
            f"timesteps holds {fraction}: give whole numbers, or use euler, which takes fractions"
        )
    return np.array(timesteps, np.float64)


def table_indices(noise: NoiseSchedule, config: SamplerConfig, options: SamplingOptions) -> list[int]:
    """Timesteps for the samplers that look up the noise schedule at each: whole, and inside of it."""
    total = noise.config.num_train_timesteps
    if options.timesteps is not None:
        refuse_levels(config, "timesteps")
        return [int(timestep) for timestep in custom(total, options.timesteps, whole=True)]
    count = step_count(total, options)
    if config.levels == "ays":
        timesteps = [int(timestep) for timestep in timesteps_of(noise, ays(count)[:-1]).round()]
        if len(set(timesteps)) < count:
            raise RequestError(
                f"{config.name} with the ays schedule visits timesteps twice in {count} steps: ask for fewer"
            )
        return timesteps
    exact = spaced(total, count, config.spacing, config.steps_offset)
    timesteps = [int(timestep) for timestep in exact.round()]
    for timestep in (timesteps[0], timesteps[-1]):
        if not 0 <= timestep < total:
            raise RequestError(
                f"{config.name} with {config.spacing} spacing and steps_offset {config.steps_offset} puts "
                f"one of {count} steps at timestep {timestep}, outside 0 to {total - 1}: "
                f"ask for another number of steps or another spacing"
            )
    return timesteps


def timesteps_of(noise: NoiseSchedule, levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """The timesteps whose noise levels these are, fractions between two; levels outside of the schedule are told
    as its first or last one.

    Interpolated in the logarithm, in diffusers' order of operations: some samplers cut the fraction off, and a
    whole timestep should fall on the same side.
    """
    table = noise.log_sigmas
    wanted = np.log(np.maximum(levels, 1e-10))
    low = np.clip(np.searchsorted(table, wanted, side="right") - 1, 0, len(table) - 2)
    share = np.clip((table[low] - wanted) / (table[low] - table[low + 1]), 0, 1)
    timesteps: NDArray[np.float64] = (1 - share) * low + share * (low + 1)
    return timesteps


def start_index(total: int, options: SamplingOptions) -> int:
    """Where in the whole list of timesteps a trajectory starts: at 0, or as late as the strength says.

    It is diffusers' get_timesteps: of N steps asked for, N * strength are left, truncated as the product of
    floats that it is (50 * 0.58 leaves 28). A list that is longer than N (PNDM's, and a trailing one whose
    rounding adds a timestep) is entered at the same index, and keeps that much more.
    """
    if options.strength is None:
        return 0
    count, strength = options.step_count, options.strength
    left = int(count * strength)
    if left == 0:
        # A few digits more than the count has, rounded up: short to type, and enough in floating point.
        scale = 10 ** (len(str(count)) + 2)
        remedy = f"give a strength of at least {-(-scale // count) / scale:g}"
        if 1 / strength <= total:
            steps = int(1 / strength)
            remedy += f", or at least {steps if int(steps * strength) else steps + 1} steps"
        raise RequestError(
            f"strength {strength} of {count} step{'' if count == 1 else 's'} leaves none to take: {remedy}"
        )
    return count - left


def refuse_levels(config: SamplerConfig, given: str) -> None:
    """Raise RequestError where a request's own list meets a rule for noise levels, which would overrule it."""
    if config.levels != "spaced":
        raise RequestError(
            f"{given} are given, and the schedule is {config.levels}: leave one of the two out"
        )


def refuse_sigmas(config: SamplerConfig, options: SamplingOptions) -> None:
    if options.sigmas is not None:
        raise RequestError(
            f"{config.name} takes no sigmas, got {len(options.sigmas)}: leave them out, or use euler"
        )


def refuse_eta(config: SamplerConfig, options: SamplingOptions) -> None:
    if options.eta != 0:
        raise RequestError(f"{config.name} takes no eta, got {options.eta}: leave it out, or use ddim")
