"""Loss of the denoisers: noise or velocity in latents, given captions and the conditions of each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from benchmarks.demo import world
from benchmarks.demo.training.data import Latents, scene
from benchmarks.demo.training.text import Captions
from benchmarks.demo.training.vae import pixels
from sd2rt.export.checkpoints.pipeline_configs import Config

Conditions = Callable[[list[world.Scene], np.random.Generator, torch.Tensor], torch.Tensor]
"""Maps (scenes, generator, their latents) to the additional input channels: [N, c, h, w]."""

_DROPPED_PROMPTS = 0.1
"""Share of samples with an empty caption, for classifier-free guidance."""
_GAMMA = 5.0
_FLOOR = 0.2


class NoiseSchedule:
    """SD2's scaled-linear schedule: signal and noise coefficients at each of 1000 timesteps."""

    def __init__(self, config: Config) -> None:
        steps = int(config["num_train_timesteps"])
        betas = (
            torch.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, steps, dtype=torch.float64)
            ** 2
        )
        alphas_cumprod = torch.cumprod(1 - betas, 0)
        self.signal = alphas_cumprod.sqrt().float()
        self.noise = (1 - alphas_cumprod).sqrt().float()

    def shares(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Signal and noise coefficients, each [N, 1, 1, 1]."""
        return self.signal[timesteps][:, None, None, None], self.noise[timesteps][:, None, None, None]

    def ratio(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Signal-to-noise ratio: [N]."""
        return (self.signal[timesteps] / self.noise[timesteps]).square()


def weights(ratio: torch.Tensor, prediction: Literal["epsilon", "v_prediction"]) -> torch.Tensor:
    """Weight of the squared error at a signal-to-noise ratio: [N].

    Min-SNR (Hang et al. 2023, arXiv 2303.09556, equation 5) with a floor: the content and layout of an image are
    decided at noise levels to which the plain weight gives only a hundredth.
    """
    of_sample = ratio.clamp(_FLOOR, _GAMMA)
    return of_sample / (ratio if prediction == "epsilon" else ratio + 1)


@dataclass(frozen=True, slots=True)
class Batch:
    """Source of a denoiser's training batches."""

    latents: Latents
    captions: Captions
    size: int
    noisy: float = 0.5
    """Share of timesteps drawn from the noisier half."""

    def draw(
        self, generator: np.random.Generator, encoder: nn.Module
    ) -> tuple[list[world.Scene], torch.Tensor, torch.Tensor]:
        """Draw scenes, their latents [N, 4, h, w], and text states [N, 77, D] of captions, some of them empty."""
        indices = generator.integers(0, len(self.latents), self.size)
        scenes = [scene(int(index)) for index in indices]
        captions = [
            "" if generator.random() < _DROPPED_PROMPTS else world.caption(one, generator) for one in scenes
        ]
        with torch.no_grad():
            states = encoder(self.captions.encode(captions)).last_hidden_state
        return scenes, self.latents.take(indices), states


class DenoiserLoss:
    """Weighted squared error of the noise or velocity that ``unet`` predicts."""

    def __init__(
        self,
        unet: nn.Module,
        encoder: nn.Module,
        batch: Batch,
        scheduler: Config,
        conditions: Conditions | None = None,
    ) -> None:
        self._batch, self._conditions, self._encoder = batch, conditions, encoder
        self._schedule = NoiseSchedule(scheduler)
        self._prediction = scheduler.get("prediction_type", "epsilon")
        # Not compiled: torch.compile of PyTorch 2.13 loses the gradient at the first upsampling on a CPU.
        self._unet = unet

    def __call__(self, generator: np.random.Generator, noise: torch.Generator) -> Mapping[str, torch.Tensor]:
        batch, schedule = self._batch, self._schedule
        scenes, clean, states = batch.draw(generator, self._encoder)
        timesteps = torch.from_numpy(draw_timesteps(generator, batch.size, batch.noisy, len(schedule.signal)))
        eps = torch.randn(clean.shape, generator=noise)
        signal, share = schedule.shares(timesteps)
        noised = signal * clean + share * eps
        target = eps if self._prediction == "epsilon" else signal * eps - share * clean
        if self._conditions is not None:
            noised = torch.cat([noised, self._conditions(scenes, generator, clean)], 1)
        prediction = self._unet(noised, timesteps, states, return_dict=False)[0]
        error = (prediction - target).square().mean((1, 2, 3))
        weighted = error * weights(schedule.ratio(timesteps), self._prediction)
        high = timesteps >= 800
        return {"loss": weighted.mean(), "error": error.mean(), "layout": _mean(weighted, high)}


def draw_timesteps(generator: np.random.Generator, count: int, noisy: float, steps: int) -> np.ndarray:
    """Random timesteps [count] int64, a share ``noisy`` of them from the noisier half."""
    low = np.where(generator.random(count) < noisy, steps // 2, 0)
    return low + generator.integers(0, steps // 2, count)


def _mean(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def depth_conditions(
    scenes: list[world.Scene], generator: np.random.Generator, clean: torch.Tensor
) -> torch.Tensor:
    """Depth maps [N, 1, h, w], scaled per scene from -1 (far) to 1 (near)."""
    side = clean.shape[-1]
    maps = np.stack([world.depth(one, side) for one in scenes])
    low, high = (pick(maps, axis=(1, 2), keepdims=True) for pick in (np.min, np.max))
    return torch.from_numpy(2 * (maps - low) / (high - low) - 1)[:, None]


class InpaintingConditions:
    """A mask and the latents of the image with the masked area blanked: [N, 5, h, w]."""

    def __init__(self, encode: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._encode = encode

    def __call__(
        self, scenes: list[world.Scene], generator: np.random.Generator, clean: torch.Tensor
    ) -> torch.Tensor:
        side, factor = clean.shape[-1], world.SIDE // clean.shape[-1]
        masks = np.stack([_mask(one, generator, side) for one in scenes])[:, None]
        mask = torch.from_numpy(masks)
        large = mask.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        return torch.cat([mask, self._encode(pixels(scenes) * (1 - large))], 1)


def _mask(one: world.Scene, generator: np.random.Generator, side: int) -> np.ndarray:
    """Random mask [side, side], 1 where to repaint: everywhere, around a thing, or anywhere."""
    mask = np.zeros((side, side), np.float32)
    chance = generator.random()
    if chance < 0.1:
        mask[:] = 1
        return mask
    if chance < 0.8:
        thing = one.things[int(generator.integers(len(one.things)))]
        x, y = (value * side / world.SIDE for value in thing.center)
        reach = generator.uniform(26, 34, 4) * side / world.SIDE
    else:
        x, y = generator.uniform(0, side, 2)
        reach = generator.uniform(10, 45, 4) * side / world.SIDE
    left, top = (max(0, round(v)) for v in (x - reach[0], y - reach[1]))
    mask[top : round(y + reach[2]), left : round(x + reach[3])] = 1
    return mask
