"""The depth estimator: MiDaS' architecture, trained on the world's exact depth."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers import DPTConfig, DPTForDepthEstimation

from benchmarks.demo import world
from sd2rt.export.checkpoints.pipeline_configs import Config

_SIDE = 384
"""Side of the estimator's square input, in pixels."""
_SCALE = 10.0
"""Estimator output for nearness 1. The output has no unit; published estimators reach tens."""


def untrained(config: Config) -> DPTForDepthEstimation:
    """An estimator with variance-preserving initial weights (He et al. 2015, equation 14).

    transformers initialises all weights with a deviation of 0.02, meant for networks tens of times wider. Behind four
    fusions, gradients would then be a billionth of the head's.
    """
    # The configuration classes keep and modify nested dictionaries.
    estimator = DPTForDepthEstimation(DPTConfig(**copy.deepcopy(config)))
    for module in estimator.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    # The head ends in a ReLU, whose gradient is zero for negative inputs.
    nn.init.constant_(estimator.head.head[-2].bias, 2.0)
    return estimator


class DepthLoss:
    """Absolute and squared error of nearness, plus the absolute error of its spatial differences.

    Pixels of things count five times, since most of an image is ground.
    """

    def __init__(self, estimator: nn.Module, batch: int) -> None:
        self._estimator, self._batch = estimator, batch

    def __call__(self, generator: np.random.Generator, noise: torch.Generator) -> Mapping[str, torch.Tensor]:
        scenes = [world.draw_scene(generator) for _ in range(self._batch)]
        pictures = [
            Image.fromarray(world.picture(one)).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
            for one in scenes
        ]
        x = (
            torch.from_numpy(np.stack([np.asarray(one) for one in pictures])).permute(0, 3, 1, 2).float()
            / 127.5
            - 1
        )
        # A little noise, since inputs may have passed through an autoencoder.
        x = x + 0.02 * torch.randn(x.shape, generator=noise)
        near = torch.from_numpy(np.stack([world.depth(one) for one in scenes]))[:, None]
        near = F.interpolate(near, (_SIDE, _SIDE), mode="bilinear")[:, 0]
        counts = 1.0 + 4.0 * (near > world.GROUND)
        counts = counts / counts.mean()
        error = self._estimator(x).predicted_depth / _SCALE - near
        edges = (error[:, 1:] - error[:, :-1]).abs().mean() + (error[..., 1:] - error[..., :-1]).abs().mean()
        loss = (counts * error.abs()).mean() + 4 * (counts * error.square()).mean() + edges
        return {
            "loss": loss,
            "error": error.abs().mean(),
            "of things": error[near > world.GROUND].abs().mean(),
        }
