"""Compare each part with the PyTorch module that it was exported from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from sd2rt.engines.bundle.model_kinds import KINDS
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.export.build import part_module
from sd2rt.export.graphs.onnx_part import WHOLE_OPERATORS
from sd2rt.export.parity import PART_BOUNDS, compare_part

PARTS = KINDS["base"].parts


@pytest.mark.parametrize("variant", ["base", "v", "half", "turbo", "inpainting", "depth", "upscaler"])
def test_parts(request: Any, table: Any, variant: str) -> None:
    pair = request.getfixturevalue(variant)
    assert set(pair.pipeline.manifest.parts) == set(KINDS[pair.checkpoint.variant].parts)
    for part in pair.pipeline.manifest.parts:
        for row in compare_part(pair.pipeline.bundle, pair.checkpoint, part):
            table.add("Parts", f"{variant}, {row.what}", f"{row.error:.1e} of max", f"{row.bound:g}")
            assert row.holds, row


@pytest.mark.parametrize(
    ("b", "r", "tokens", "h", "w"), [(1, 1, 77, 8, 8), (1, 2, 154, 16, 8), (3, 5, 77, 8, 24)]
)
def test_denoiser_sizes(base: Any, table: Any, b: int, r: int, tokens: int, h: int, w: int) -> None:
    """One file serves every batch, number of rows, text length and size."""
    manifest = base.pipeline.manifest
    rng = np.random.default_rng(b)
    cond = np.arange(r - b, r)
    feed = {
        "state": rng.standard_normal((b, 5, 4, h, w), np.float32),
        "noise": rng.standard_normal((b, 4, h, w), np.float32),
        "timestep": rng.uniform(0, 999, b).astype(np.float32),
        "weights": rng.standard_normal((b, 5), np.float32),
        "guidance": np.stack([rng.uniform(1, 9, b), rng.integers(0, 2, b) * 0.5], 1).astype(np.float32),
        "update": rng.standard_normal((b, 5, 7), np.float32),
        "text": rng.standard_normal((r, tokens, 32), np.float32),
        "row": np.concatenate([np.arange(r - b), np.arange(b)]),
        "uncond": np.where(np.arange(b) < r - b, np.arange(b), cond),
        "cond": cond[:, None],
        "shares": np.ones((b, 1), np.float32),
    }
    part = manifest.parts["denoiser"]
    with OnnxRuntimeEngine(part, base.pipeline.bundle.file(part.onnxruntime)) as engine:
        session = engine.session({"B": b, "R": r, "P": 1, "L": tokens, "h": h, "w": w})
        for name, array in feed.items():
            session.buffers[name].write(array)
        session.launch()
        ours, finite = session.buffers["state_out"].read(), session.buffers["finite"].read()
    with torch.no_grad():
        expected, _ = part_module(base.checkpoint, "denoiser", "fp32")(*map(torch.from_numpy, feed.values()))
    error = float(np.abs(ours - expected.numpy()).max() / expected.abs().max())
    table.add("Parts", f"base, denoiser, B {b}, R {r}, L {tokens}, {h}x{w}", f"{error:.1e} of max", "0.0001")
    assert error <= PART_BOUNDS["fp32"]
    assert finite.tolist() == [1] * b


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_text_encoder_without_its_last_layers(base: Any, table: Any, skip: int) -> None:
    """Compare with transformers' hidden state of that layer after the final norm, two samples in a call."""
    part = base.pipeline.manifest.parts["text_encoder"]
    ids = torch.randint(0, 49408, (2, 77), generator=torch.Generator().manual_seed(skip))
    model = base.checkpoint.text_encoder()
    text_model = getattr(model, "text_model", model)
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
        expected = text_model.final_layer_norm(states[-1 - skip]).numpy()
        embeddings = text_model.embeddings.token_embedding(ids).numpy()
    with OnnxRuntimeEngine(part, base.pipeline.bundle.file(part.onnxruntime)) as engine:
        session = engine.session({"B": 2})
        session.buffers["embeddings"].write(embeddings)
        session.buffers["skip"].write(np.array([skip]))
        session.launch()
        ours = session.buffers["hidden"].read()
    error = float(np.abs(ours - expected).max() / np.abs(expected).max())
    table.add("Parts", f"base, text_encoder, clip-skip {skip}", f"{error:.1e} of max", "0.0001")
    assert error <= PART_BOUNDS["fp32"]


@pytest.mark.parametrize("part", PARTS)
def test_portable_graph(base: Any, table: Any, part: Any) -> None:
    """model.onnx, which other backends compile, gives the same results as ONNX Runtime's graph."""
    bundle = base.pipeline.bundle
    entry = bundle.manifest.parts[part]
    portable = entry.model_copy(update={"onnxruntime": entry.onnx})
    parts = {**bundle.manifest.parts, part: portable}
    plain = replace(bundle, manifest=bundle.manifest.model_copy(update={"parts": parts}))
    for row in compare_part(plain, base.checkpoint, part):
        table.add("Parts", f"base, model.onnx, {row.what}", f"{row.error:.1e} of max", f"{row.bound:g}")
        assert row.holds, row


def test_rescale_is_exact_at_zero(base: Any) -> None:
    """With phi = 0 the guided output stays the same bit for bit, even if it is constant (0 / 0 in the ratio)."""
    module = part_module(base.checkpoint, "denoiser", "fp32")
    for parameter in module.parameters():
        parameter.zero_()
    state = torch.zeros(1, 5, 4, 8, 8)
    update = torch.zeros(1, 5, 7)
    update[0, 0, 5] = 1
    guidance, one = torch.tensor([[7.5, 0.0]]), torch.zeros(1)
    index = torch.tensor([0])
    text = torch.zeros(1, 77, 32)
    rows = (text, index, index, index.unsqueeze(1), torch.ones(1, 1))
    with torch.no_grad():
        new, finite = module(state, state[:, 0], one, torch.eye(5)[:1], guidance, update, *rows)
    assert finite.tolist() == [1]
    assert not new.any()


def operator_counts(path: Path) -> Counter[str]:
    """Number of occurrences of each operator in an ONNX file."""
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_operators_stay_whole(base: Any) -> None:
    """Every attention, group norm, layer norm and GELU of the network is one operator of the graph."""
    bundle = base.pipeline.bundle
    expected = {
        "text_encoder": {"Attention": 3, "GroupNormalization": 0, "LayerNormalization": 7, "Gelu": 3},
        "denoiser": {"Attention": 20, "GroupNormalization": 39, "LayerNormalization": 30, "Gelu": 10},
        "decoder": {"Attention": 1, "LayerNormalization": 0, "Gelu": 0},
        "encoder": {"Attention": 1, "LayerNormalization": 0, "Gelu": 0},
    }
    for name, counts in expected.items():
        ours = operator_counts(bundle.file(bundle.manifest.parts[name].onnx))
        assert {operator: ours[operator] for operator in counts} == counts, name
        assert not {"Softmax", "InstanceNormalization", "Erf", "ReduceVariance"} & set(ours)
        assert set(counts) <= set(WHOLE_OPERATORS)


def test_no_paths_of_the_building_machine(base: Any) -> None:
    bundle = base.pipeline.bundle
    for part in bundle.manifest.parts.values():
        content = bundle.file(part.onnx).read_bytes()
        assert b"site-packages" not in content
        assert b".py" not in content
