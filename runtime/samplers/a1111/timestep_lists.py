"""Timesteps that AUTOMATIC1111's DDIM, PLMS and UniPC visit, whatever the schedule type."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.samplers.a1111.level_lists import encoded_steps
from sd2rt.runtime.samplers.a1111.model_levels import ModelLevels
from sd2rt.runtime.samplers.noise_schedule import NoiseSchedule, float32_linspace
from sd2rt.runtime.samplers.options import SamplingOptions


@dataclass(frozen=True, slots=True)
class Walk:
    """Whole timesteps: those at which the network is called, and the one that each step leads to."""

    timesteps: list[int]
    targets: list[int]
    entry: int
    """Timestep up to which noise is added to an image."""


@dataclass(frozen=True, slots=True)
class UnevenWalk:
    """UniPC's evenly spaced times as timesteps, which may be fractions, and levels, with that after the last step."""

    timesteps: list[float]
    levels: list[float]
    conversions: list[tuple[float, float]]
    """alpha and sigma with which a v-prediction is converted: those of the whole timestep below."""
    entry: tuple[float, float]
    """alpha and sigma up to which noise is added to an image."""


def walk(name: str, noise: NoiseSchedule, options: SamplingOptions) -> Walk:
    """Make the list of DDIM and PLMS: every n-th timestep from 1 on, which is the last target and never visited.

    An image is noised to the timestep above the first one that is visited.

    Raises:
        RequestError: no step is left.
    """
    listed, entry = _listed(name, noise, options)
    if len(listed) < 2:
        raise RequestError(
            f"{name} with the grid a1111 makes one step fewer than usual, none here: use more steps"
            f"{'' if options.strength is None else ' or a higher strength'}"
        )
    return Walk(listed[:0:-1], listed[-2::-1], entry)


def uneven_walk(noise: NoiseSchedule, options: SamplingOptions, order: int) -> UnevenWalk:
    """Make UniPC's list: even times from 1, or from the first visited timestep of an image, down to timestep 0.

    Raises:
        RequestError: there are fewer steps than the order.
    """
    total, model = noise.config.num_train_timesteps, ModelLevels(noise)
    listed, entry = _listed("unipc", noise, options)
    if len(listed) < order:
        raise RequestError(
            f"unipc of order {order} with the grid a1111 needs at least {order} steps, got {len(listed)}: use more, "
            "or a lower solver_order"
        )
    unit = np.float32(1 / total)
    start = 1.0 if options.strength is None else np.float32(listed[-1]) / np.float32(total) + unit
    times = float32_linspace(float(start), float(unit), len(listed) + 1)
    timesteps = (times - unit) * np.float32(total)
    log_signal = np.interp(
        times.astype(np.float64) * total - 1, np.arange(total), np.log(model.signal.astype(np.float64))
    )
    scales = [(sqrt(a), sqrt(1 - a)) for a in model.signal.tolist()]
    return UnevenWalk(
        timesteps[:-1].tolist(),
        np.sqrt(np.expm1(-log_signal)).tolist(),
        [scales[int(timestep)] for timestep in timesteps[:-1]],
        scales[entry],
    )


def _listed(name: str, noise: NoiseSchedule, options: SamplingOptions) -> tuple[list[int], int]:
    """Timesteps of a run in rising order, and the timestep that an image is noised to."""
    total = noise.config.num_train_timesteps
    if options.step_count > total:
        raise RequestError(
            f"{name} makes {options.step_count} steps: the schedule has {total} timesteps, use at most {total}"
        )
    every = [min(timestep + 1, total - 1) for timestep in range(0, total, total // options.step_count)]
    if options.strength is None:
        return every, every[-1]
    count = encoded_steps(options)
    return every[:count], every[count]
