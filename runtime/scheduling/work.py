"""Jobs of the scheduler: trajectories to step, images to decode, and the calls made of them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import IntEnum


class Priority(IntEnum):
    """Classes of urgency; smaller is more urgent."""

    INTERACTIVE = 0
    NORMAL = 1
    BATCH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Claims of a run to the device, against those of others."""

    priority: Priority = Priority.NORMAL
    key: Hashable = None
    """The caller. Callers get equal shares; all runs of None count as one caller's."""
    deadline: float | None = None
    """Time of :func:`time.monotonic` by which the images should be finished. A run that could not meet it is
    refused."""


NO_TERMS = Terms()


@dataclass(eq=False, slots=True, kw_only=True)
class Job:
    """Fields that steps and decodes have in common. Jobs are compared by identity. Times are in seconds."""

    lane: Hashable
    """Jobs of equal lanes can share a denoiser call."""
    group: Hashable
    """The run that the job belongs to."""
    arrival: float
    priority: Priority = Priority.NORMAL
    key: Hashable = None
    """The caller. Callers get equal shares of a lane; all jobs of None count as one caller's."""
    deadline: float | None = None
    """Time by which the image should be finished."""
    image: Hashable = None
    """Equal for the tiles of one image and its decode; None for an image of its own."""
    ready: bool = True
    """False while nobody asks for the next step. The driver sets it at any time."""


@dataclass(eq=False, slots=True, kw_only=True)
class Work(Job):
    """One trajectory: an image, or a tile of one. The scheduler counts its remaining steps."""

    steps_left: int


@dataclass(eq=False, slots=True, kw_only=True)
class Decode(Job):
    """One decoding of latents, for an image or a preview."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a network: a step of all ``works``, or if that is empty, ``decode``."""

    lane: Hashable
    works: tuple[Work, ...]
    """In the order of the lane's last call; works that join come last."""
    decode: Decode | None = None
