"""The depth estimator: MiDaS' architecture, taught by the world's exact depth."""

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
"""Of the square that a picture is squashed to, in pixels."""
_SCALE = 10.0
"""What nearness 1 is in the estimator's output, which has no unit: published ones run to tens."""


def untrained(config: Config) -> DPTForDepthEstimation:
    """An estimator whose weights are drawn for signals that keep their size (He et al. 2015, equation 14).

    transformers draws all of them with a deviation of 0.02, for networks tens of times as wide: behind four fusions,
    gradients are a billionth of the head's.
    """
    # The configuration classes take nested dictionaries over and change them.
    estimator = DPTForDepthEstimation(DPTConfig(**copy.deepcopy(config)))
    for module in estimator.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    # The head ends in a rectifier: from below it nothing is learned.
    nn.init.constant_(estimator.head.head[-2].bias, 2.0)
    return estimator


class DepthLoss:
    """The absolute and the square error of nearness, and the absolute one of its differences.

    What things cover counts five times: ground is most of a picture and says little.
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
        # A little noise: what an estimator is shown may have come out of an autoencoder.
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
