"""What one request asks of a sampler."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from sd2rt.engines.errors import RequestError


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """Where a trajectory goes through: a number of steps, or the timesteps or noise levels themselves.

    Exactly one of the three is given. ``sigmas`` are noise-to-signal ratios, one more than there are steps:
    the last is what the last step leaves, usually 0. ``eta`` is DDIM's share of fresh noise, from 0 (none)
    to 1 (as much as DDPM).

    Without ``strength`` the trajectory starts from pure noise. With it, above 0 and up to 1, it starts from
    an image with noise added, and only that share of the steps is taken, the last ones; at 1 all of them,
    and still from the image. Where it starts is start_index's to say.

    Raises RequestError for what no sampler could use; each sampler refuses what it does not support itself.
    """

    num_inference_steps: int | None = None
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    eta: float = 0.0
    strength: float | None = None

    def __post_init__(self) -> None:
        ways = {
            "num_inference_steps": self.num_inference_steps,
            "timesteps": self.timesteps,
            "sigmas": self.sigmas,
        }
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise RequestError(f"{found} given: give one of num_inference_steps, timesteps and sigmas")
        steps = self.num_inference_steps
        if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 1):
            raise RequestError(f"num_inference_steps is {steps!r}: give a whole number of at least 1")
        if self.timesteps is not None:
            _check_descent("timesteps", self.timesteps, shortest=1)
        if self.sigmas is not None:
            _check_descent("sigmas", self.sigmas, shortest=2)
        if not 0 <= self.eta <= 1:
            raise RequestError(f"eta is {self.eta}: give a number from 0 to 1")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise RequestError(f"strength is {self.strength}: give a number above 0 and up to 1")

    @property
    def step_count(self) -> int:
        """How many steps are asked for, whichever of the three ways says it."""
        if self.num_inference_steps is not None:
            return self.num_inference_steps
        if self.timesteps is not None:
            return len(self.timesteps)
        assert self.sigmas is not None
        return len(self.sigmas) - 1


def _check_descent(name: str, values: tuple[float, ...], shortest: int) -> None:
    if len(values) < shortest:
        raise RequestError(f"{name} has {len(values)} values: give at least {shortest}")
    for value in values:
        if not math.isfinite(value) or value < 0:
            raise RequestError(f"{name} holds {value}: give finite numbers of at least 0")
    for value, following in pairwise(values):
        if not value > following:
            raise RequestError(
                f"{name} goes from {value} to {following}: give them in falling order, none twice"
            )
