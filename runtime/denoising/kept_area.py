"""The area that inpainting keeps, for denoisers without a mask as input: its latents before each call."""

from __future__ import annotations

from math import isinf, sqrt
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.sampler_config import STATE_SLOTS, PredictionType
from sd2rt.runtime.samplers.plan import Plan, Step

Latents = NDArray[np.float32]
Mask = NDArray[np.bool_]


class KeptArea(Protocol):
    """Puts the latents of the kept area into a sampler's state, before each call and after the last one.

    Samplers work on each latent by itself. So the area needs no more than the right S_0, which is the network's
    input: what else the state has there reaches nothing outside of the area.
    """

    def start(self, latents: Latents) -> Latents:
        """Return the initial latents [C, h, w] with those of the area."""

    def restore(self, state: Latents, done: int, noise: Latents | None) -> None:
        """Change the state [slots, C, h, w] after ``done`` calls; calls come in order.

        Args:
            noise: fresh noise of the last call; None if it drew none.
        """


class NoisedOriginal:
    """The original with one noise at every level, as in diffusers' inpainting with a UNet of four channels.

    Args:
        kept: [1, h, w], True in the area.
        original: latents of the image, [C, h, w].
        noise: the initial noise, [C, h, w].
        clean: the original without noise before each call, as AUTOMATIC1111's samplers of timesteps show it.
    """

    def __init__(
        self, plan: Plan, kept: Mask, original: Latents, noise: Latents, *, clean: bool = False
    ) -> None:
        self._kept, self._original, self._noise, self._clean = kept, original, noise, clean
        self._scales = [_scales(step, clean=clean) for step in plan.steps] + [(1.0, 0.0)]
        """Of the original and of the noise, before each call and at the end."""

    def start(self, latents: Latents) -> Latents:
        return np.where(self._kept, self._latents(0), latents) if self._clean else latents

    def restore(self, state: Latents, done: int, noise: Latents | None) -> None:
        np.copyto(state[0], self._latents(done), where=self._kept)

    def _latents(self, done: int) -> Latents:
        original, noise = map(np.float32, self._scales[done])
        latents: Latents = original * self._original + noise * self._noise
        return latents


class ReplacedEstimate:
    """The network's estimate of the image replaced by the original, as with AUTOMATIC1111's samplers of k-diffusion.

    The area then follows the sampler, without the network: with fresh noise it has other noise at each level.

    Args:
        kept: [1, h, w], True in the area.
        original: latents of the image, [C, h, w].
        prediction: what the network predicts.
    """

    def __init__(self, plan: Plan, kept: Mask, original: Latents, prediction: PredictionType) -> None:
        self._kept, self._original = kept, original
        self._updates = [_update(step, prediction) for step in plan.steps]
        self._state = np.zeros((STATE_SLOTS, *original.shape))

    def start(self, latents: Latents) -> Latents:
        self._state[0] = latents
        return latents

    def restore(self, state: Latents, done: int, noise: Latents | None) -> None:
        fresh = np.zeros_like(self._original) if noise is None else noise
        inputs = np.concatenate([self._state, self._original[None], fresh[None]])
        self._state = np.tensordot(self._updates[done - 1], inputs, 1)
        latents = self._original if done == len(self._updates) else self._state[0]
        np.copyto(state[0], latents, where=self._kept, casting="same_kind")


def _signal(level: float) -> tuple[float, float]:
    """Return alpha and sigma of the network's input at a noise-to-signal ratio."""
    if isinf(level):
        return 0.0, 1.0
    alpha = 1 / sqrt(level**2 + 1)
    return alpha, alpha * level


def _scales(step: Step, *, clean: bool) -> tuple[float, float]:
    """Return the factors of original and noise in S_0 before a step."""
    if clean:
        return 1 / step.weights[0], 0.0
    alpha, sigma = _signal(step.level)
    if step.kept_level is not None:
        sigma = alpha * step.kept_level
    return alpha / step.weights[0], sigma / step.weights[0]


def _update(step: Step, prediction: PredictionType) -> NDArray[np.float64]:
    """Return the step's update over [S_0 .. S_K, original, noise], its output being that of the exact denoiser."""
    alpha, sigma = _signal(step.level)
    of_input, of_original = {
        "epsilon": (1 / sigma, -alpha / sigma),
        "v_prediction": (alpha / sigma, -1 / sigma),
        "sample": (0.0, 1.0),
    }[prediction]
    update = step.update.copy()
    output = step.update[:, STATE_SLOTS]
    update[:, :STATE_SLOTS] += of_input * np.outer(output, step.weights)
    update[:, STATE_SLOTS] = of_original * output
    return update
