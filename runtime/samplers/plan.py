"""A sampler's output: small matrices, one set a step, that the denoiser applies to a sample's state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Step:
    """One denoiser call for one sample.

    With the state S_0 .. S_K, the guided network output D and this step's fresh noise:
    the network sees ``weights @ [S_0 .. S_K]`` at ``timestep``, and the state becomes
    ``update @ [S_0 .. S_K, D, noise]``.
    """

    timestep: float
    weights: Matrix  # [K+1]
    update: Matrix  # [K+1, K+3]
    level: float
    """How noisy what the network sees is: the ratio of noise to signal, sigma."""
    draws_noise: bool
    """Whether a normal draw is made for it: also where its share is zero, so that later draws are the same."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole trajectory: what S_0 starts as, and the steps after which S_0 is the result.

    Without ``start_noise``, S_0 starts as ``init_scale`` times standard normal noise. With it, the trajectory
    starts late, from an image: S_0 starts as ``a * image_latents + b * noise``, the two numbers being a and
    b, and ``init_scale`` has no say. The other slots start as zero.
    """

    init_scale: float
    steps: tuple[Step, ...]
    start_noise: tuple[float, float] | None = None

    @property
    def levels(self) -> tuple[float, ...]:
        """How noisy what the network sees is at each call."""
        return tuple(step.level for step in self.steps)
