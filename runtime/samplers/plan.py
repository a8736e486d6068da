"""A sampler's output: small matrices for each step, which the denoiser applies to a sample's state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Step:
    """One denoiser call for one sample.

    For the state S_0 .. S_K, the guided network output D and this step's fresh noise: the input of the network is
    ``weights @ [S_0 .. S_K]`` at ``timestep``, and the new state is ``update @ [S_0 .. S_K, D, noise]``.
    """

    timestep: float
    weights: Matrix  # [K+1]
    update: Matrix  # [K+1, K+3]
    level: float
    """Noise level of the network's input: the noise-to-signal ratio sigma."""
    draws_noise: bool
    """True if the step draws noise, even with weight zero, so that later draws are the same."""
    interval: tuple[float, float] | None = None
    """Noise levels between which a Brownian path gives the step's noise; None for independent noise."""
    kept_level: float | None = None
    """Noise level that diffusers gives the area that inpainting keeps, if it is not the input's."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole trajectory: the initial value of S_0, and the steps, after which S_0 is the result.

    Without ``start_noise``, S_0 starts as ``init_scale`` times standard normal noise. With ``start_noise`` = (a, b)
    the trajectory starts from an image, S_0 = ``a * image_latents + b * noise``, and ``init_scale`` is unused. The
    other slots start as zero.
    """

    init_scale: float
    steps: tuple[Step, ...]
    start_noise: tuple[float, float] | None = None
    path: tuple[float, float] | None = None
    """Lowest and highest noise level of the Brownian path, for steps with intervals."""

    @property
    def finite(self) -> bool:
        """True if all numbers are finite in float32, in which the denoiser computes."""
        numbers = [
            np.array([self.init_scale, *(self.start_noise or ())]),
            *(np.append(step.weights, step.timestep) for step in self.steps),
            *(step.update.ravel() for step in self.steps),
        ]
        return bool((np.abs(np.concatenate(numbers)) <= np.finfo(np.float32).max).all())

    @property
    def levels(self) -> tuple[float, ...]:
        """Noise level of the network's input at each call."""
        return tuple(step.level for step in self.steps)
