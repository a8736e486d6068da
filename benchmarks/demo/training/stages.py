"""The training stages in order, with their networks, starting weights and recipes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from benchmarks.demo.training import text, vae
from benchmarks.demo.training.data import Latents
from benchmarks.demo.training.denoiser import (
    Batch,
    Conditions,
    DenoiserLoss,
    InpaintingConditions,
    depth_conditions,
)
from benchmarks.demo.training.depth import DepthLoss, untrained
from benchmarks.demo.training.loop import Recipe, train
from benchmarks.demo.training.upscaler import UpscalerLoss
from sd2rt.engines.bundle.model_kinds import ModelKind
from sd2rt.export.checkpoints.pipeline_configs import Config
from sd2rt.export.checkpoints.tiny_configs import DEMO, DEMO_DEPTH, DEMO_UPSCALER, DEMOS


def _words(folder: Path) -> None:
    torch.manual_seed(1)
    captions = text.Captions()
    encoder = text.text_encoder(captions)
    reader = text.GridReader(encoder.config.hidden_size)
    loss = text.WordsLoss(captions, encoder, reader, 32)
    train("words", {"text_encoder": encoder, "reader": reader}, loss, Recipe(steps=6000, rate=1e-3), folder)


@dataclass(frozen=True, slots=True)
class _Autoencoder:
    """Train an autoencoder from scratch and whiten its latents at the end."""

    name: str
    config: Config
    seed: int
    recipe: Recipe

    def __call__(self, folder: Path) -> None:
        torch.manual_seed(self.seed)
        network = vae.TrainableVae(AutoencoderKL.from_config(self.config))
        loss = vae.AutoencoderLoss(network, batch=16, crop=64)
        train(self.name, {"vae": network}, loss, self.recipe, folder)
        _whiten(folder / f"{self.name}.pt", network)


def _decoder(folder: Path) -> None:
    """Train only the decoder of factor 8, which leaves the latents that the denoisers learned unchanged."""
    network = vae.TrainableVae(AutoencoderKL.from_config(DEMO.vae))
    network.load_state_dict(_weights(folder, "vae", "vae"))
    for part in (network.vae.encoder, network.vae.quant_conv):
        part.requires_grad_(False)
    loss = vae.AutoencoderLoss(network, batch=16, crop=64)
    train("decoder", {"vae": network}, loss, Recipe(steps=2500, rate=5e-4, falling=0.6, seed=1), folder)


def _whiten(path: Path, network: vae.TrainableVae) -> None:
    state = torch.load(path, weights_only=True)
    if "whitened" not in state:
        vae.whiten(network.vae, network.vae.config.scaling_factor)
        state["modules"]["vae"] = network.state_dict()
        torch.save(state | {"whitened": True}, path)


@dataclass(frozen=True, slots=True)
class _Denoiser:
    """Train a UNet of one kind, from scratch or from another stage's weights."""

    kind: ModelKind
    recipe: Recipe
    start: str | None = None
    name: str | None = None
    """File name, if different from the kind."""
    batch: int = 32

    def __call__(self, folder: Path) -> None:
        torch.manual_seed(3)
        configs = DEMOS[self.kind]
        unet = UNet2DConditionModel.from_config(configs.unet)
        if self.start is not None:
            _load_with_new_channels(unet, _weights(folder, self.start, "unet"))
        unet.to(memory_format=torch.channels_last)
        captions = text.Captions()
        encoder = _text_encoder(folder, captions)
        autoencoder = _autoencoder(folder)
        scaling_factor = autoencoder.config.scaling_factor
        latents = Latents(autoencoder, scaling_factor, folder / "latents.npy")
        conditions: dict[ModelKind, Conditions] = {
            "depth": depth_conditions,
            "inpainting": InpaintingConditions(
                lambda x: _encoded(autoencoder, x) * scaling_factor,
            ),
        }
        loss = DenoiserLoss(
            unet, encoder, Batch(latents, captions, self.batch), configs.scheduler, conditions.get(self.kind)
        )
        train(self.name or self.kind, {"unet": unet}, loss, self.recipe, folder)


@torch.no_grad()
def _encoded(autoencoder: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
    mean: torch.Tensor = autoencoder.quant_conv(autoencoder.encoder(x)).chunk(2, dim=1)[0]
    return mean


def _weights(folder: Path, stage: str, module: str) -> dict[str, torch.Tensor]:
    path = folder / f"{stage}.pt"
    if not path.exists():
        raise SystemExit(f"{path} does not exist: train the stage {stage} first")
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["modules"][module]
    return weights


def _text_encoder(folder: Path, captions: text.Captions) -> CLIPTextModel:
    encoder = text.text_encoder(captions)
    encoder.load_state_dict(_weights(folder, "words", "text_encoder"))
    return encoder.eval().requires_grad_(False)


def _autoencoder(folder: Path, stage: str = "vae", config: Config = DEMO.vae) -> AutoencoderKL:
    network = vae.TrainableVae(AutoencoderKL.from_config(config))
    network.load_state_dict(_weights(folder, stage, "vae"))
    return network.vae.eval().requires_grad_(False)


def _load_with_new_channels(unet: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load another kind's weights; new input channels start at zero."""
    old = weights["conv_in.weight"]
    new = torch.zeros_like(unet.state_dict()["conv_in.weight"])
    new[:, : old.shape[1]] = old
    unet.load_state_dict({**weights, "conv_in.weight": new})


def _upscaler(folder: Path) -> None:
    torch.manual_seed(5)
    unet = UNet2DConditionModel.from_config(DEMO_UPSCALER.unet)
    unet.to(memory_format=torch.channels_last)
    captions = text.Captions()
    encoder = _text_encoder(folder, captions)
    autoencoder = _autoencoder(folder, "vae-x4", DEMO_UPSCALER.vae)
    path = folder / "latents-x4.npy"
    latents = Latents(autoencoder, autoencoder.config.scaling_factor, path, scenes=6000)
    loss = UpscalerLoss(unet, encoder, Batch(latents, captions, 8), DEMO_UPSCALER)
    train("upscaler", {"unet": unet}, loss, Recipe(steps=8500, rate=8e-4, falling=0.5), folder)


def _depth_estimator(folder: Path) -> None:
    torch.manual_seed(6)
    config = DEMO_DEPTH.depth_estimator
    assert config is not None
    estimator = untrained(config)
    train(
        "depth-estimator",
        {"depth_estimator": estimator},
        DepthLoss(estimator, 4),
        Recipe(steps=1200, rate=8e-4, falling=0.5),
        folder,
    )


STAGES: dict[str, Callable[[Path], None]] = {
    "words": _words,
    "vae": _Autoencoder("vae", DEMO.vae, 2, Recipe(steps=3800, rate=6e-4, falling=0.5)),
    "decoder": _decoder,
    "first": _Denoiser("base", Recipe(steps=3400, rate=8e-4, falling=0.3, warm=200), name="first"),
    # Most steps predict velocity: a network that predicts noise learns the content of images more slowly.
    "v": _Denoiser("v", Recipe(steps=11000, rate=8e-4, falling=0.35, warm=200), start="first"),
    "base": _Denoiser("base", Recipe(steps=3500, rate=6e-4, falling=0.7), start="v"),
    "inpainting": _Denoiser("inpainting", Recipe(steps=4800, rate=6e-4, falling=0.7), start="v"),
    "depth": _Denoiser("depth", Recipe(steps=2000, rate=6e-4, falling=0.7), start="v"),
    "vae-x4": _Autoencoder("vae-x4", DEMO_UPSCALER.vae, 4, Recipe(steps=4000, rate=5e-4, falling=0.5)),
    "upscaler": _upscaler,
    "depth-estimator": _depth_estimator,
}
