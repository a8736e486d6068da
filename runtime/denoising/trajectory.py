"""One image on its way: its plan, its prompt, its random numbers, and how far it has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import EngineError
from sd2rt.runtime.prompts.text_conditioning import TextConditioning
from sd2rt.runtime.rng.select import NormalGenerator
from sd2rt.runtime.samplers.plan import Plan

Latents = NDArray[np.float32]


@dataclass(slots=True, eq=False)
class Trajectory:
    """What the step loop needs to know of one image, and where it leaves what became of it."""

    plan: Plan
    latents: Latents  # [C, h, w]: unit noise, of which the start is made; the result, when finished
    texts: tuple[TextConditioning, ...]  # one for each call; calls that are told the same share one object
    guidance: NDArray[np.float32]  # [N, 2]: scale and rescale of each call
    generator: NormalGenerator
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
    ramps: tuple[bool, ...] = field(init=False)
    """For each call, whether it is guided otherwise than the one before."""
    turns: tuple[bool, ...] = field(init=False)
    """For each call and the end, whether it is told other texts than the one before, or is the end."""

    def __post_init__(self) -> None:
        steps = self.plan.steps
        # Float64 until here; the denoiser's inputs are float32.
        self.timesteps = np.array([step.timestep for step in steps], np.float32)
        self.weights = np.array([step.weights for step in steps], np.float32)
        self.updates = np.array([step.update for step in steps], np.float32)
        self.noisy = tuple(step.draws_noise for step in steps)
        if len(self.texts) != self.length or self.guidance.shape != (self.length, 2):
            raise ValueError(
                f"{len(self.texts)} texts and guidance of the shape {list(self.guidance.shape)} are given for "
                f"{self.length} calls: give one of each for each"
            )
        self.ramps = (False, *(self.guidance[1:] != self.guidance[:-1]).any(1).tolist())
        self.turns = (False, *(now is not last for last, now in pairwise(self.texts)), True)
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
    def group(self) -> tuple[tuple[int, ...], int]:
        """The shape of its latents, and the length L of its texts: trajectories of one group can share a batch."""
        return self.latents.shape, lcm(*{texts.tokens for texts in self.texts})


def batchable(trajectories: Sequence[Trajectory]) -> list[list[Trajectory]]:
    """Trajectories divided into those that can share a batch, each in the order given.

    Their latents have one shape. Their texts may differ in length where each length divides the longest: a text
    that is repeated whole changes nothing but rounding.
    """
    homes: dict[tuple[tuple[int, ...], int], tuple[tuple[int, ...], int]] = {}
    for group in sorted({t.group for t in trajectories}, key=lambda group: group[1], reverse=True):
        shape, length = group
        longer = (home for home in homes.values() if home[0] == shape and home[1] % length == 0)
        homes[group] = next(longer, group)
    groups: dict[tuple[tuple[int, ...], int], list[Trajectory]] = {}
    for trajectory in trajectories:
        groups.setdefault(homes[trajectory.group], []).append(trajectory)
    return list(groups.values())
