"""State of one image in the step loop: its plan, texts, random numbers, and the steps made so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import lcm
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import EngineError
from sd2rt.runtime.denoising.kept_area import KeptArea
from sd2rt.runtime.prompts.text_conditioning import TextConditioning
from sd2rt.runtime.rng.select import NormalGenerator, draws
from sd2rt.runtime.samplers.plan import Plan

Latents = NDArray[np.float32]


class NoisePath(Protocol):
    """Noise of a Brownian path."""

    def noise(self, level: float, following: float) -> Latents:
        """Standard normals [C, h, w] of a step between two noise levels."""


@dataclass(slots=True, eq=False)
class Trajectory:
    """Input and result of one image in the step loop."""

    plan: Plan
    latents: Latents  # [C, h, w]: unit noise on input, then the initial latents; the result when finished
    texts: tuple[TextConditioning, ...]  # one per call; calls with the same text share one object
    guidance: NDArray[np.float32]  # [N, 2]: scale and rescale of each call
    generator: NormalGenerator
    seed: int
    path: NoisePath | None = None
    """Source of the noise of steps with intervals; None if the plan has none."""
    image_latents: Latents | None = (
        None  # [C, h, w], times the scaling factor; for plans that start from an image
    )
    extra: NDArray[Any] | None = None  # [Cx, h, w]: input channels of the network besides the latents
    noise_level: int | None = None  # the upscaler's class label
    kept: KeptArea | None = None
    """Area that inpainting keeps, if the network itself has no mask as input."""
    done: int = 0  # calls made so far
    error: EngineError | None = None
    _drawn: tuple[int, Latents] | None = field(default=None, init=False)
    _ahead: list[Latents] = field(default_factory=list, init=False)
    """Noise of later calls, the next one last."""
    timesteps: NDArray[np.float32] = field(init=False)  # [N]
    weights: NDArray[np.float32] = field(init=False)  # [N, K+1]
    updates: NDArray[np.float32] = field(init=False)  # [N, K+1, K+3]
    draws_noise: tuple[bool, ...] = field(init=False)  # [N]
    guidance_changes: tuple[bool, ...] = field(init=False)
    """[N]: True if the call's guidance differs from that of the previous call."""
    texts_change: tuple[bool, ...] = field(init=False)
    """[N+1]: True if the call's text differs from that of the previous call, and at the end."""

    def __post_init__(self) -> None:
        steps = self.plan.steps
        # Plans are float64; the denoiser's inputs are float32.
        self.timesteps = np.array([step.timestep for step in steps], np.float32)
        self.weights = np.array([step.weights for step in steps], np.float32)
        self.updates = np.array([step.update for step in steps], np.float32)
        self.draws_noise = tuple(step.draws_noise for step in steps)
        if len(self.texts) != self.length or self.guidance.shape != (self.length, 2):
            raise ValueError(
                f"got {len(self.texts)} texts and guidance of shape {list(self.guidance.shape)} for "
                f"{self.length} calls: one text and one row of guidance per call are needed"
            )
        self.guidance_changes = (False, *(self.guidance[1:] != self.guidance[:-1]).any(1).tolist())
        self.texts_change = (False, *(text is not last for last, text in pairwise(self.texts)), True)
        latents = self._initial_latents(self.latents).astype(np.float32)
        self.latents = latents if self.kept is None else self.kept.start(latents)

    def _initial_latents(self, noise: Latents) -> Latents:
        """Scale the noise, or add it to the image, in float32 like diffusers' ``add_noise``."""
        image, start = self.image_latents, self.plan.start_noise
        if start is None:
            if image is not None:
                raise ValueError("got image latents, but the plan starts from noise: make it with a strength")
            return noise * np.float32(self.plan.init_scale)
        if image is None:
            raise ValueError(
                "the plan starts from an image, but there are no image latents: pass image_latents"
            )
        if image.shape != noise.shape:
            raise ValueError(
                f"image latents of shape {list(image.shape)} do not match noise of shape {list(noise.shape)}"
            )
        return image * np.float32(start[0]) + noise * np.float32(start[1])

    def noise(self) -> Latents:
        """Fresh noise [C, h, w] of the next call; drawn once, even if the call fails and is made again."""
        if self._drawn is None or self._drawn[0] != self.done:
            self._drawn = self.done, self._draw()
        return self._drawn[1]

    def _draw(self) -> Latents:
        interval = self.plan.steps[self.done].interval
        if interval is None:
            if not self._ahead:
                further = sum(self.draws_noise[self.done :])
                self._ahead = draws(self.generator, self.latents.shape, further)[::-1]
            return self._ahead.pop()
        if self.path is None:
            raise ValueError("the plan's noise is that of a Brownian path, but there is none: pass path")
        return self.path.noise(*interval)

    def advance(self, state: Latents | None) -> None:
        """Count a call that was made.

        Args:
            state: the state [slots, C, h, w] after it, in which the kept area is restored; None without one.
        """
        drawn = self.draws_noise[self.done]
        self.done += 1
        if self.kept is not None and state is not None:
            self.kept.restore(state, self.done, self._drawn[1] if drawn and self._drawn is not None else None)

    @property
    def length(self) -> int:
        """Number of denoiser calls; for PNDM one more than the requested steps."""
        return len(self.plan.steps)

    @property
    def finished(self) -> bool:
        return self.done == self.length or self.error is not None

    @property
    def group(self) -> tuple[tuple[int, ...], int]:
        """Shape of the latents and length L of the texts; trajectories of one group can share a batch."""
        return self.latents.shape, lcm(*{texts.tokens for texts in self.texts})


def batchable(trajectories: Sequence[Trajectory]) -> list[list[Trajectory]]:
    """Split trajectories into groups that can share a batch, keeping their order within each.

    A group has one shape of latents. Text lengths may differ if each divides the longest: repeating a whole text
    changes only rounding.
    """
    merged: dict[tuple[tuple[int, ...], int], tuple[tuple[int, ...], int]] = {}
    for group in sorted({t.group for t in trajectories}, key=lambda group: group[1], reverse=True):
        shape, length = group
        fitting = (longer for longer in merged.values() if longer[0] == shape and longer[1] % length == 0)
        merged[group] = next(fitting, group)
    groups: dict[tuple[tuple[int, ...], int], list[Trajectory]] = {}
    for trajectory in trajectories:
        groups.setdefault(merged[trajectory.group], []).append(trajectory)
    return list(groups.values())
