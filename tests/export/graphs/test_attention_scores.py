"""Attention scores beyond float16: fp16 bundles draw where diffusers draws with upcast_attention."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from safetensors.torch import load_file, save_file

from sd2rt.engines.bundle.engine_entry import BuilderOptions
from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.bundle.sampler_config import STATE_SLOTS
from sd2rt.engines.bundle.schema import exceeds_half
from sd2rt.engines.onnxruntime.backend import OnnxRuntimeBackend
from sd2rt.engines.openvino.backend import OpenVinoBackend
from sd2rt.export.build import _attention_scores, build
from sd2rt.export.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sd2rt.export.graphs.attention_scores import largest_scores
from sd2rt.export.graphs.part_modules import Denoiser

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
LIMIT = 65504


def scaled(source: Path, folder: Path, factor: float, **config: Any) -> Path:
    """Copy a checkpoint with the UNet's queries and keys multiplied by a factor."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / WEIGHTS)
    for name, tensor in tensors.items():
        if ".to_q." in name or ".to_k." in name:
            tensors[name] = tensor * factor
    save_file(tensors, folder / WEIGHTS)
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def feed(channels: int, width: int) -> dict[str, Any]:
    """One evaluation of the UNet, whose output becomes the new state."""
    generator = np.random.default_rng(1)
    state = np.zeros((1, STATE_SLOTS, channels, 16, 16), np.float32)
    state[:, 0] = generator.standard_normal((1, channels, 16, 16))
    weights, update = (
        np.zeros((1, STATE_SLOTS), np.float32),
        np.zeros((1, STATE_SLOTS, STATE_SLOTS + 2), np.float32),
    )
    weights[0, 0] = update[0, 0, STATE_SLOTS] = 1
    return {
        "state": state,
        "noise": np.zeros_like(state[:, 0]),
        "timestep": np.array([500], np.float32),
        "weights": weights,
        "guidance": np.array([[1, 0]], np.float32),
        "update": update,
        "text": generator.standard_normal((1, 77, width)).astype(np.float16),
        "row": np.zeros(1, np.int64),
        "uncond": np.zeros(1, np.int64),
        "cond": np.zeros((1, 1), np.int64),
        "shares": np.ones((1, 1), np.float32),
    }


def by_diffusers(checkpoint: Checkpoint, values: dict[str, Any], dtype: torch.dtype) -> Any:
    """Result with scores in float32 where the configuration asks for it, by diffusers' own attention."""
    unet = checkpoint.unet(dtype)
    unet.set_attn_processor(AttnProcessor())
    tensors = {name: torch.from_numpy(value) for name, value in values.items()}
    tensors["text"] = tensors["text"].to(dtype)
    with torch.inference_mode():
        return Denoiser(unet).eval()(**tensors)[0][:, 0].numpy()


def by_backend(backend: Any, values: dict[str, Any]) -> Any:
    engine = backend.open("denoiser")
    try:
        session = engine.session({"B": 1, "R": 1, "P": 1, "L": 77, "h": 16, "w": 16})
        for name, value in values.items():
            session.buffers[name].write(value)
        session.launch()
        return session.buffers["state_out"].read()[:, 0].copy()
    finally:
        engine.close()


def distance(actual: Any, expected: Any) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def built(folder: Path, target: Path) -> tuple[Any, Checkpoint]:
    checkpoint = open_checkpoint(str(folder))
    build(checkpoint, target, precision="fp16")
    return open_bundle(target), checkpoint


def test_scores_are_those_of_diffusers(small_v_checkpoint: Path, tmp_path: Path) -> None:
    """The largest that diffusers' own attention computes before its softmax; it grows with the weights' square."""
    once = largest_scores(open_checkpoint(str(small_v_checkpoint)).unet(torch.float32))
    unet = open_checkpoint(str(scaled(small_v_checkpoint, tmp_path / "x", 28))).unet(torch.float32)
    seen: list[float] = []
    unscaled = Attention.get_attention_scores

    def recorded(self: Attention, query: Any, key: Any, mask: Any = None) -> Any:
        seen.append(float((query @ key.transpose(-1, -2)).abs().max() * self.scale))
        return unscaled(self, query, key, mask)

    unet.set_attn_processor(AttnProcessor())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attention, "get_attention_scores", recorded)
        measured = largest_scores(unet)
    assert measured == pytest.approx(max(seen), rel=1e-4)
    # The states that later layers attend to depend on the scores, so this is no equality.
    assert 28**2 / 4 < measured / once < 28**2 * 4


@pytest.mark.parametrize("upcast", [True, False])
def test_scores_beyond_float16(small_v_checkpoint: Path, tmp_path: Path, upcast: bool) -> None:
    """Asked for or not: they are measured."""
    once = largest_scores(open_checkpoint(str(small_v_checkpoint)).unet(torch.float32))
    factor = (4 * LIMIT / once) ** 0.5
    folder = scaled(small_v_checkpoint, tmp_path / "scaled", factor, upcast_attention=upcast)
    bundle, checkpoint = built(folder, tmp_path / "bundle")
    part = bundle.manifest.parts["denoiser"]
    assert part.largest_scores is not None
    assert part.largest_scores > LIMIT
    assert part.attends_in_float32
    graph = onnx.load(bundle.file(bundle.manifest.parts["denoiser"].onnx), load_external_data=False).graph
    casts = {name for node in graph.node if node.op_type == "Cast" for name in node.output}
    attentions = [node for node in graph.node if node.op_type == "Attention"]
    assert attentions
    assert all(casts.issuperset(node.input) for node in attentions)
    values = feed(4, checkpoint.parts.config("unet")["cross_attention_dim"])
    exact = by_diffusers(checkpoint, {**values, "text": values["text"].astype(np.float32)}, torch.float32)
    half = by_diffusers(checkpoint, values, torch.float16)
    assert np.isfinite(half).all() == upcast
    for backend in (
        OnnxRuntimeBackend(bundle, threads=1),
        OpenVinoBackend(bundle, threads=1, precision=None),
    ):
        ours = by_backend(backend, values)
        assert np.isfinite(ours).all()
        if upcast:
            # Queries and keys are rounded to float16 in both.
            assert distance(ours, exact) < 1.3 * distance(half, exact)
    bundle.close()


def test_engines_are_compiled_without_fused_attention(small_v_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from sd2rt.engines.tensorrt.compile.add_engines import build_engines
    from sd2rt.engines.tensorrt.compile.profiles import Shapes

    folder = scaled(small_v_checkpoint, tmp_path / "scaled", 300)
    bundle, _ = built(folder, tmp_path / "bundle")
    assert bundle.manifest.parts["denoiser"].attends_in_float32
    options = BuilderOptions(backend="tensorrt-rtx", compute_capabilities=("8.9",))
    build_engines(bundle.path, Shapes(((128, 128),)), options, parts=("denoiser",))
    (entry,) = read_manifest(bundle.path).engines
    report = json.loads((bundle.path / entry.report.path).read_text())
    assert report["built"]["attentions"] > 0
    assert report["built"]["fused"] == 0


@pytest.mark.parametrize("upcast", [True, False])
def test_scores_that_float16_holds(small_v_checkpoint: Path, tmp_path: Path, upcast: bool) -> None:
    """Attention is not made slower, whatever the configuration says; that of float32 never is."""
    folder = scaled(small_v_checkpoint, tmp_path / "same", 1, upcast_attention=upcast)
    checkpoint = open_checkpoint(str(folder))
    scores = _attention_scores(checkpoint, "denoiser", "fp16")
    assert scores is not None
    assert scores == pytest.approx(largest_scores(checkpoint.unet(torch.float32)), rel=5e-3)
    assert not exceeds_half(scores)
    assert _attention_scores(checkpoint, "denoiser", "fp32") is None
    assert _attention_scores(checkpoint, "decoder", "fp16") is None


@pytest.mark.parametrize(("scores", "exceeds"), [(4.0, False), (8000.0, False), (8200.0, True), (1e30, True)])
def test_margin(scores: float, exceeds: bool) -> None:
    assert exceeds_half(scores) == exceeds
    assert exceeds_half(float("nan"))
