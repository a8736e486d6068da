"""What a peer is told, and what its adapter has to offer. Imports nothing that only some environments have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]  # [H, W, 3] in [0, 1]
Make = Callable[[int, int], tuple[Image, list[float]]]
"""(steps, seed) to the image, and the seconds of every denoiser call but the first, which follows the text
encoder. On a GPU, where calls are only enqueued, one value: the mean over all calls but the first."""


class UnavailableError(Exception):
    """The peer cannot run here; the message is the reason, in one line."""


@dataclass(frozen=True, slots=True)
class Job:
    """One peer's orders. Made of what JSON has, since they travel to a process of another interpreter."""

    adapter: str
    """A module of this package."""
    checkpoint: str
    """A diffusers folder."""
    bundle: str | None
    prepared: str
    """A folder for what the adapter makes of the checkpoint once; its own, and kept between runs."""
    prompt: str
    width: int
    height: int
    channels: int
    """Of the latents."""
    vae_factor: int
    threads: int
    options: dict[str, Any] = field(default_factory=dict)
    """The adapter's own, from the catalogue."""

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        return 1, self.channels, self.height // self.vae_factor, self.width // self.vae_factor

    @property
    def folder(self) -> Path:
        return Path(self.prepared)


def require(*modules: str) -> None:
    """Raises UnavailableError where one is not installed. Imports none: that takes long, and is done to open."""
    for name in modules:
        if find_spec(name) is None:
            raise UnavailableError(f"No module named {name!r}")


class Adapter(Protocol):
    """A module that makes a peer. Imports its packages within its functions: an ImportError is a reason."""

    PACKAGES: tuple[str, ...]
    """Distributions whose versions a result states."""

    def prepare(self, job: Job) -> None:
        """Check that the peer can run, and write into ``job.folder`` what it opens later, if anything.

        Raises:
            UnavailableError, ImportError: it cannot run here.
        """

    def open_pipeline(self, job: Job) -> Make:
        """Everything loaded, and ready to make images.

        Raises:
            UnavailableError, ImportError: it cannot run here.
        """
