"""Interface of the image generators that are scored: one order per image, and settings per set."""

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
    """One image to generate: prompt, noise seed and, for some tasks, an input image and a mask."""

    prompt: str
    seed: int
    negative: str = ""
    image: Picture | None = None
    mask: NDArray[np.bool_] | None = None
    """True where the image is repainted: [H, W]."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of all images of a set; ``strength`` and ``noise_level`` are None for tasks without them."""

    steps: int
    guidance: float
    sampler: str | None = None
    strength: float | None = None
    noise_level: int | None = None


class Painter(Protocol):
    """An opened checkpoint of the demo that generates images."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def paint(self, orders: Sequence[Order], settings: Settings) -> list[Picture]:
        """Generate one image per order, in the same sequence; they may run as one batch."""
        ...

    def round_trip(self, picture: Picture) -> Picture:
        """Encode and decode an image with the autoencoder."""
        ...


def to_levels(unit: NDArray[np.floating]) -> Picture:
    """Convert values in [0, 1] to levels, 0 to 255."""
    return np.asarray(np.rint(unit.clip(0, 1) * 255), np.uint8)
