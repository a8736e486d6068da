"""Training the demo: gradients reach all weights, resuming changes nothing, shipping is lossless."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn

from benchmarks.demo.training import ship, text, vae
from benchmarks.demo.training.data import Latents
from benchmarks.demo.training.denoiser import (
    Batch,
    Conditions,
    DenoiserLoss,
    InpaintingConditions,
    NoiseSchedule,
    depth_conditions,
    weights,
)
from benchmarks.demo.training.depth import DepthLoss, untrained
from benchmarks.demo.training.loop import Interrupted, Loss, Recipe, train
from benchmarks.demo.training.upscaler import UpscalerLoss
from sd2rt.engines.bundle.model_kinds import ModelKind
from sd2rt.engines.demo.files import KERNELS, WEIGHTS
from sd2rt.export.checkpoints.tiny_configs import DEMO, DEMO_DEPTH, DEMO_UPSCALER, DEMOS

Learning = tuple[nn.Module, Loss]


def of_words(folder: Path) -> Learning:
    captions = text.Captions()
    encoder = text.text_encoder(captions)
    reader = text.GridReader(encoder.config.hidden_size)
    return nn.ModuleList([encoder, reader]), text.WordsLoss(captions, encoder, reader, 4)


def of_autoencoder(folder: Path) -> Learning:
    network = vae.TrainableVae(AutoencoderKL.from_config(DEMO.vae))
    return network, vae.AutoencoderLoss(network, batch=4, crop=64)


def of_denoiser(kind: ModelKind) -> Callable[[Path], Learning]:
    def learning(folder: Path) -> Learning:
        unet, captions = UNet2DConditionModel.from_config(DEMOS[kind].unet), text.Captions()
        autoencoder = AutoencoderKL.from_config(DEMO.vae)
        batch = Batch(Latents(autoencoder, 1.0, folder / "latents.npy", scenes=4), captions, 4)
        of_kind: dict[ModelKind, Conditions] = {
            "depth": depth_conditions,
            "inpainting": InpaintingConditions(_pooled),
        }
        encoder = text.text_encoder(captions)
        return unet, DenoiserLoss(unet, encoder, batch, DEMOS[kind].scheduler, of_kind.get(kind))

    return learning


def _pooled(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.avg_pool2d(x, 8)[:, [0, 1, 2, 0]]


def of_upscaler(folder: Path) -> Learning:
    unet, captions = UNet2DConditionModel.from_config(DEMO_UPSCALER.unet), text.Captions()
    autoencoder = AutoencoderKL.from_config(DEMO_UPSCALER.vae)
    batch = Batch(Latents(autoencoder, 1.0, folder / "latents.npy", scenes=4), captions, 2)
    return unet, UpscalerLoss(unet, text.text_encoder(captions), batch, DEMO_UPSCALER)


def of_depth(folder: Path) -> Learning:
    estimator = untrained(DEMO_DEPTH.depth_estimator or {})
    return estimator, DepthLoss(estimator, 2)


@pytest.mark.parametrize(
    ("learning", "unused"),
    [
        (of_words, ()),
        (of_autoencoder, ()),
        (of_denoiser("base"), ()),
        (of_denoiser("v"), ()),
        (of_denoiser("inpainting"), ()),
        (of_denoiser("depth"), ()),
        (of_upscaler, ()),
        # The first fusion has no previous layer to add, and transformers' DPT does not use the last norm.
        (of_depth, ("neck.fusion_stage.layers.0.residual_layer1.", "dpt.layernorm.")),
    ],
    ids=["words", "autoencoder", "base", "v", "inpainting", "depth", "upscaler", "depth-estimator"],
)
def test_every_weight_gets_a_gradient(
    learning: Callable[[Path], Learning], unused: tuple[str, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network, loss = learning(tmp_path)
    losses = loss(np.random.default_rng(0), torch.Generator().manual_seed(0))
    assert all(torch.isfinite(value) for value in losses.values())
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    largest = max(float(p.grad.abs().max()) for p in network.parameters() if p.grad is not None)
    without = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or float(parameter.grad.abs().max()) < 1e-9 * largest
    ]
    # A bias that all keys share adds the same to all scores of a query, which a softmax takes out.
    assert [
        n
        for n in without
        if not n.endswith(("k_proj.bias", "key.bias", "to_k.bias")) and not n.startswith(unused)
    ] == []


def _line() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def _line_loss(line: nn.Linear, stop_at: int | None = None, seen: list[float] | None = None) -> Loss:
    calls = 0

    def loss(generator: np.random.Generator, noise: torch.Generator) -> Mapping[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.from_numpy(generator.normal(size=(4, 3)).astype(np.float32))
        value = (line(x) - x.sum(1, keepdim=True) - torch.randn(4, 1, generator=noise)).square().mean()
        if seen is not None:
            seen.append(float(value.detach()))
        return {"loss": value}

    return loss


def test_an_interrupted_run_ends_as_a_whole_one(tmp_path: Path) -> None:
    recipe = Recipe(steps=60, rate=1e-2)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        whole = _line()
        losses: list[float] = []
        train("whole", {"line": whole}, _line_loss(whole, seen=losses), recipe, tmp_path)
        parts = _line()
        with pytest.raises(Interrupted, match="parts stopped after 20 of 60 steps"):
            train("parts", {"line": parts}, _line_loss(parts, stop_at=20), recipe, tmp_path)
        again = _line()
        train("parts", {"line": again}, _line_loss(again), recipe, tmp_path)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert torch.equal(again.weight, whole.weight)
    assert not torch.equal(again.weight, _line().weight)
    logs = [(tmp_path / f"{name}.log").read_text().splitlines() for name in ("whole", "parts")]
    assert [[json.loads(line)["step"] for line in log] for log in logs] == [[50, 60]] * 2
    # A line has the mean since the previous line, or since training resumed.
    assert json.loads(logs[1][0])["loss"] == pytest.approx(np.mean(losses[20:50]), abs=1e-5)
    state = torch.load(tmp_path / "parts.pt", weights_only=True)
    assert (state["step"], state["optimizer"], state["recipe"]["steps"]) == (60, None, 60)


def test_noise_is_added_as_the_scheduler_does() -> None:
    scheduler = DDIMScheduler.from_config(DEMOS["v"].scheduler)
    x, eps = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    timesteps = torch.tensor([0, 500, 999])
    signal_share, share = NoiseSchedule(DEMOS["v"].scheduler).shares(timesteps)
    torch.testing.assert_close(signal_share * x + share * eps, scheduler.add_noise(x, eps, timesteps))
    torch.testing.assert_close(signal_share * eps - share * x, scheduler.get_velocity(x, eps, timesteps))


def test_noise_and_velocity_are_weighted_alike() -> None:
    """An error of the clean latents costs the same for noise and velocity prediction."""
    timesteps = torch.arange(0, 1000, 37)
    schedule = NoiseSchedule(DEMO.scheduler)
    ratio = schedule.ratio(timesteps)
    _, share = schedule.shares(timesteps)
    # Of an error e of the clean latents, the noise's is e signal / noise, the velocity's e / noise.
    by_noise = weights(ratio, "epsilon") * ratio
    by_velocity = weights(ratio, "v_prediction") / share.flatten().square()
    torch.testing.assert_close(by_noise, by_velocity)


def test_what_is_unpacked_is_shipped_again_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder, shipped = tmp_path / "training", tmp_path / "shipped"
    arguments = ["ship", "--folder", str(folder)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--unpack"])
    assert ship.main() == 0
    monkeypatch.setattr(
        sys, "argv", [*arguments, "--output", str(shipped), "--record", str(tmp_path / "r.json")]
    )
    assert ship.main() == 0
    # The kernels are computed from shipped weights.
    packaged = sorted(set(WEIGHTS.glob("*.safetensors")) - {KERNELS})
    assert [path.name for path in packaged] == sorted(path.name for path in shipped.iterdir())
    for path in packaged:
        before, after = load_file(path), load_file(shipped / path.name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert json.loads((tmp_path / "r.json").read_text())["bytes"] == sum(p.stat().st_size for p in packaged)
