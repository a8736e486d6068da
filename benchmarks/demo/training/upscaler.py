"""Loss of the x4 upscaler: the noised low-resolution image is an input, its noise level a class label."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.demo.training.denoiser import Batch, NoiseSchedule, draw_timesteps, weights
from benchmarks.demo.training.vae import pixels
from sd2rt.export.checkpoints.pipeline_configs import PipelineConfigs

FACTOR = 4
_MOST_NOISE = 350
"""Largest noise level of the published pipeline."""


class UpscalerLoss:
    """Weighted squared error of the velocity, given captions and images at a quarter of the size."""

    def __init__(self, unet: nn.Module, encoder: nn.Module, batch: Batch, configs: PipelineConfigs) -> None:
        assert configs.low_res_scheduler is not None
        self._batch, self._encoder = batch, encoder
        self._schedule = NoiseSchedule(configs.scheduler)
        self._low_schedule = NoiseSchedule(configs.low_res_scheduler)
        self._unet = unet

    def __call__(self, generator: np.random.Generator, noise: torch.Generator) -> Mapping[str, torch.Tensor]:
        batch, schedule, low_schedule = self._batch, self._schedule, self._low_schedule
        scenes, clean, states = batch.draw(generator, self._encoder)
        # Mostly low noise levels, since the default is 20.
        levels = torch.from_numpy((_MOST_NOISE * generator.random(batch.size) ** 3).astype(np.int64))
        low = F.avg_pool2d(pixels(scenes), FACTOR)
        low = _noised(low, torch.randn(low.shape, generator=noise), levels, low_schedule)
        eps = torch.randn(clean.shape, generator=noise)
        timesteps = torch.from_numpy(draw_timesteps(generator, batch.size, batch.noisy, len(schedule.signal)))
        signal, share = schedule.shares(timesteps)
        noised = torch.cat([signal * clean + share * eps, low], 1)
        prediction = self._unet(noised, timesteps, states, class_labels=levels, return_dict=False)[0]
        error = (prediction - (signal * eps - share * clean)).square().mean((1, 2, 3))
        weighted = error * weights(schedule.ratio(timesteps), "v_prediction")
        return {"loss": weighted.mean(), "error": error.mean()}


def _noised(
    x: torch.Tensor, eps: torch.Tensor, timesteps: torch.Tensor, schedule: NoiseSchedule
) -> torch.Tensor:
    signal, share = schedule.shares(timesteps)
    return signal * x + share * eps
