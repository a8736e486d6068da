"""Measure whether a UNet predicts noise or v, for files that do not say so."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

from sd2rt.engines.bundle.sampler_config import PredictionType

_SIDE = 16
_TOKENS = 77
_LAST_TIMESTEP = 999
_SEED = 0
_SURE = 0.9
"""Correlation above which an output is the noise."""


def correlation_with_noise(unet: UNet2DConditionModel) -> float:
    """Correlate a UNet's output with its input, pure noise, at the last timestep.

    There, nearly all of the input is noise. A network that predicts noise returns it, so that the correlation is
    almost 1; one that predicts v = a e - s x returns the negative of the picture that it sees in it, of which the
    noise is a small part.
    """
    generator = torch.Generator("cpu").manual_seed(_SEED)
    noise = torch.randn((1, unet.config.in_channels, _SIDE, _SIDE), generator=generator)
    text = torch.zeros((1, _TOKENS, unet.config.cross_attention_dim))
    with torch.inference_mode():
        output = unet(noise, _LAST_TIMESTEP, text).sample
    pair = torch.stack([noise[:, : output.shape[1]].flatten(), output.float().flatten()])
    return float(torch.corrcoef(pair)[0, 1])


def likely_prediction(correlation: float) -> PredictionType:
    """Prediction that a correlation is a sign of."""
    return "epsilon" if correlation > _SURE else "v_prediction"
