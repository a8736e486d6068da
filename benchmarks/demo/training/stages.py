"""The stages of training in their order: what each makes, of what, how long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from sd2rt.export.random_configs import DEMO, DEMO_UPSCALER
from torch import nn

from benchmarks.demo.training import text, vae
from benchmarks.demo.training.loop import Recipe, train


def _words(folder: Path) -> None:
    torch.manual_seed(1)
    captions = text.Captions()
    encoder = text.text_encoder(captions)
    reader = text.GridReader(encoder.config.hidden_size)
    train("words", {"text_encoder": encoder, "reader": reader}, text.WordsLoss(captions, encoder, reader, 32),
          Recipe(steps=6000, rate=1e-3), folder)


def _vae(folder: Path) -> None:
    torch.manual_seed(2)
    network = vae.TrainableVae(AutoencoderKL.from_config(DEMO.vae))
    network.to(memory_format=torch.channels_last)
    train("vae", {"vae": network}, vae.AutoencoderLoss(network, batch=16, crop=64), Recipe(steps=3000, rate=1e-3), folder)


STAGES: dict[str, Callable[[Path], None]] = {"words": _words, "vae": _vae}
