"""Settings of a scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a scheduler, for all of its lanes.

    Raises:
        ValueError: a number is not positive.
    """

    max_batch: int | Literal["auto"] = "auto"
    """Images of different runs in a call. ``auto`` decides by the lane's measured costs, and is 1 without them. At 1,
    a call has images of one run only."""
    largest_batch: int = 16
    """Upper limit of ``auto``."""
    group_batch: int = 4
    """Images of one run in a call where ``max_batch`` is 1."""
    quantum_steps: int = 4
    """Steps of a lane's turn, in the active lane whose steps take longest; others make more in the same time."""
    key_quantum_steps: int = 20
    """Steps of a caller's turn, summed over its images."""
    ageing_seconds: float = 30.0
    """After each such time without service, a job counts as one class more urgent."""
    max_images: int | None = None
    """Unfinished images that are admitted; None for any number."""
    preempt: bool = True
    """Suspend running images while more urgent ones would wait."""

    def __post_init__(self) -> None:
        for name in ("max_batch", "largest_batch", "group_batch", "quantum_steps", "key_quantum_steps"):
            value = getattr(self, name)
            if value != "auto" and value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")
        if not self.ageing_seconds > 0:
            raise ValueError(f"ageing_seconds is {self.ageing_seconds}: it must be above 0")
        if self.max_images is not None and self.max_images < 1:
            raise ValueError(f"max_images is {self.max_images}: it must be at least 1, or None")
