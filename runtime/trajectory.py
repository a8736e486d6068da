"""One image on its way: its plan, its prompt, its random numbers, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import EngineError
from sd2rt.runtime.plan import Plan
from sd2rt.runtime.rng import Normals

Latents = NDArray[np.float32]


@dataclass(slots=True, eq=False)
class Trajectory:
    """What the step loop needs to know of one image, and where it leaves what became of it."""

    plan: Plan
    latents: Latents  # [C, h, w]: unit noise, of which the start is made; the result, when finished
    cond: NDArray[Any]  # [L, D]
    uncond: NDArray[Any] | None  # [L, D]; None where there is no guidance
    guidance_scale: float
    guidance_rescale: float
    generator: Normals
    seed: int
    image_latents: Latents | None = None  # [C, h, w], times the scaling factor: where a late start begins
    extra: NDArray[Any] | None = None  # [Cx, h, w]: channels that the network sees beside the latents
    noise_level: int | None = None  # the upscaler's class label
    done: int = 0
    error: EngineError | None = None
    timesteps: NDArray[np.float32] = field(init=False)  # [N]
    weights: NDArray[np.float32] = field(init=False)  # [N, K+1]
    updates: NDArray[np.float32] = field(init=False)  # [N, K+1, K+3]
    noisy: tuple[bool, ...] = field(init=False)

    def __post_init__(self) -> None:
        steps = self.plan.steps
        # Float64 until here; the denoiser's inputs are float32.
        self.timesteps = np.array([step.timestep for step in steps], np.float32)
        self.weights = np.array([step.weights for step in steps], np.float32)
        self.updates = np.array([step.update for step in steps], np.float32)
        self.noisy = tuple(step.draws_noise for step in steps)
        self.latents = self._start(self.latents).astype(np.float32)

    def _start(self, noise: Latents) -> Latents:
        """What the plan starts from, in float32 as diffusers' add_noise makes it."""
        image, start = self.image_latents, self.plan.start_noise
        if start is None:
            if image is not None:
                raise ValueError("image latents given to a plan that starts from noise: plan with a strength")
            return noise * np.float32(self.plan.init_scale)
        if image is None:
            raise ValueError("no image latents given to a plan that starts from an image: give image_latents")
        if image.shape != noise.shape:
            raise ValueError(
                f"image latents have the shape {list(image.shape)}, the noise {list(noise.shape)}: give one shape"
            )
        return image * np.float32(start[0]) + noise * np.float32(start[1])

    @property
    def length(self) -> int:
        """Steps in all: denoiser calls, of which PNDM makes one more than it was asked for."""
        return len(self.plan.steps)

    @property
    def finished(self) -> bool:
        return self.done == self.length or self.error is not None

    @property
    def group(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Trajectories of one group can share a batch: their latents and their texts have one shape."""
        return self.latents.shape, self.cond.shape
