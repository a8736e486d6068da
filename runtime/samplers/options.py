"""Sampling options of one request."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from sd2rt.engines.bundle.sampler_config import A1111Schedule
from sd2rt.engines.errors import RequestError

SMALLEST_LEVEL, LARGEST_LEVEL = 1e-8, 1e8
"""Range of noise levels other than 0, as in a bundle's configuration: samplers raise them to the fourth power."""


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """Number of steps, or custom timesteps or noise levels; exactly one of the three is set.

    ``sigmas`` are noise-to-signal ratios, one more than there are steps: the last is the level after the last step,
    usually 0. ``eta`` is DDIM's amount of fresh noise, from 0 (none) to 1 (as in DDPM).

    Without ``strength`` the trajectory starts from pure noise. With it, above 0 and up to 1, it starts from an image
    with noise added, and takes only that fraction of the steps, the last ones; at 1 it takes all of them, still from
    the image. See :func:`~sd2rt.runtime.samplers.timesteps.start_index`.

    ``a1111`` is a schedule type of AUTOMATIC1111, whose grid then replaces that of the configuration; a strength
    counts as it does there.

    Raises:
        RequestError: a value is invalid for every sampler. Each sampler checks what it does not support.
    """

    num_inference_steps: int | None = None
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    eta: float = 0.0
    strength: float | None = None
    a1111: A1111Schedule | None = None

    def __post_init__(self) -> None:
        values = {
            "num_inference_steps": self.num_inference_steps,
            "timesteps": self.timesteps,
            "sigmas": self.sigmas,
        }
        names = [name for name, value in values.items() if value is not None]
        if not names:
            raise RequestError("none of num_inference_steps, timesteps and sigmas is set: set one of them")
        if len(names) > 1:
            raise RequestError(f"{' and '.join(names)} cannot be combined: set one of them")
        if self.a1111 is not None and self.num_inference_steps is None:
            raise RequestError(
                f"custom {names[0]} cannot be combined with the grid a1111: leave one of them out"
            )
        steps = self.num_inference_steps
        if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
            raise RequestError(f"num_inference_steps is {steps!r}: use a whole number of at least 1")
        if self.timesteps is not None:
            _check_descent("timesteps", self.timesteps, shortest=1)
        if self.sigmas is not None:
            _check_descent("sigmas", self.sigmas, shortest=2)
        if not 0 <= self.eta <= 1:
            raise RequestError(f"eta is {self.eta}: use a number from 0 to 1")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise RequestError(f"strength is {self.strength}: use a number above 0, up to 1")

    @property
    def step_count(self) -> int:
        """Number of requested steps, by whichever of the three is set."""
        if self.num_inference_steps is not None:
            return self.num_inference_steps
        if self.timesteps is not None:
            return len(self.timesteps)
        assert self.sigmas is not None
        return len(self.sigmas) - 1


def _check_descent(name: str, values: tuple[float, ...], shortest: int) -> None:
    if len(values) < shortest:
        raise RequestError(f"{name} has {len(values)} values: use at least {shortest}")
    for value in values:
        if not math.isfinite(value) or value < 0:
            raise RequestError(f"{name} holds {value}: use finite numbers of at least 0")
        if value != 0 and not SMALLEST_LEVEL <= value <= LARGEST_LEVEL:
            raise RequestError(
                f"{name} holds {value}: use 0, or numbers from {SMALLEST_LEVEL:g} to {LARGEST_LEVEL:g}"
            )
    for value, following in pairwise(values):
        if not value > following:
            raise RequestError(f"{name} goes from {value} to {following}: use strictly decreasing values")
