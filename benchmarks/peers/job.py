"""A peer's job, and the interface of its adapter. Imports only packages that every environment has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]  # [H, W, 3] in [0, 1]
Generate = Callable[[int, int], tuple[Image, list[float]]]
"""Maps (steps, seed) to the image and the seconds of every denoiser call after the first, which includes the text
encoder. On a GPU, where calls are only enqueued, there is one value: the mean of all calls after the first."""


class UnavailableError(Exception):
    """The peer cannot run here; the message is the reason, in one line."""


@dataclass(frozen=True, slots=True)
class Job:
    """Input of one peer. Holds only JSON types, since it is sent to a process of another interpreter."""

    adapter: str
    """A module of this package."""
    checkpoint: str
    """A diffusers folder."""
    bundle: str | None
    prepared: str
    """Folder of the adapter's exported files, reused by later runs."""
    prompt: str
    width: int
    height: int
    channels: int
    """Latent channels."""
    vae_factor: int
    threads: int
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the adapter, from the catalogue."""

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        return 1, self.channels, self.height // self.vae_factor, self.width // self.vae_factor

    @property
    def folder(self) -> Path:
        return Path(self.prepared)


def require(*modules: str) -> None:
    """Raise UnavailableError if a module is not installed. Imports nothing: imports are timed as part of opening."""
    for name in modules:
        if find_spec(name) is None:
            raise UnavailableError(f"No module named {name!r}")


class Adapter(Protocol):
    """A module that runs a peer. It imports its packages in its functions; an ImportError makes it unavailable."""

    PACKAGES: tuple[str, ...]
    """Distributions whose versions are recorded."""

    def prepare(self, job: Job) -> None:
        """Check that the peer can run, and export to ``job.folder`` if it needs files.

        Raises:
            UnavailableError, ImportError: the peer cannot run here.
        """

    def open_pipeline(self, job: Job) -> Generate:
        """Load everything and return a function that generates images.

        Raises:
            UnavailableError, ImportError: the peer cannot run here.
        """
