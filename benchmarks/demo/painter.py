"""What makes pictures for the scores: an order for each picture, and what all pictures of a run have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""[H, W, 3]."""


@dataclass(frozen=True, slots=True)
class Order:
    """One picture: a prompt, the seed of its noise, and for some tasks a picture and a mask to start from."""

    prompt: str
    seed: int
    negative: str = ""
    image: Picture | None = None
    mask: NDArray[np.bool_] | None = None
    """True where the image is made anew: [H, W]."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How all pictures of a set are made; ``strength`` and ``noise_level`` are None where the task has none."""

    steps: int
    guidance: float
    sampler: str | None = None
    strength: float | None = None
    noise_level: int | None = None


class Painter(Protocol):
    """A checkpoint of the demo, opened."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def paint(self, orders: Sequence[Order], settings: Settings) -> list[Picture]:
        """A picture for each order, in their order. Those of a call may be made at once."""
        ...

    def round_trip(self, picture: Picture) -> Picture:
        """What the autoencoder alone makes of a picture."""
        ...


def to_levels(unit: NDArray[np.floating]) -> Picture:
    """Values in [0, 1] to levels, 0 to 255."""
    return np.asarray(np.rint(unit.clip(0, 1) * 255), np.uint8)
