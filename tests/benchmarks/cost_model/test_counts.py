"""Operation counts: single operators by hand, full-size networks against an independent count."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.cost_model.counts import CountError, Counts, count, count_part
from benchmarks.cost_model.reference_counts import REFERENCES, Reference
from benchmarks.cost_model.shapes import Graph, ShapeError
from benchmarks.cost_model.weightless import graph_of, weightless_graph
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.export.checkpoints.tiny_configs import SMALL, SMALL_UPSCALER


def one(
    operator: str,
    inputs: dict[str, tuple[int, ...]],
    weights: dict[str, tuple[int, ...]] | None = None,
    **attributes: object,
) -> Counts:
    """Count a graph of one operator."""
    weights = weights or {}
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(operator, [*inputs, *weights], ["out"], **attributes)],
            "one",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"] * len(s))
                for name, s in inputs.items()
            ],
            [helper.make_empty_tensor_value_info("out")],
            [numpy_helper.from_array(np.ones(s, np.float32), name) for name, s in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 23)],
    )
    return count(Graph(model, inputs))


def test_products_with_weights() -> None:
    counts = one("MatMul", {"x": (2, 5, 3)}, {"w": (3, 7)})
    assert counts == Counts(
        linear=2 * 2 * 5 * 7 * 3, parameters=21, weight_bytes=84, activation_bytes=4 * (2 * 5 * 3 + 2 * 5 * 7)
    )
    assert one("Gemm", {"x": (3, 5)}, {"w": (7, 3), "b": (7,)}, transA=1, transB=1).linear == 2 * 5 * 7 * 3


def test_convolutions() -> None:
    assert one("Conv", {"x": (2, 8, 9, 9)}, {"w": (6, 4, 3, 3)}, group=2, strides=[2, 2]).conv == (
        2 * 2 * 6 * 4 * 4 * (4 * 9)
    )
    # Transposed, [C_in, C_out, 2, 2] at stride 2: each of the 4 x 18 x 18 outputs has one input position.
    counts = one("ConvTranspose", {"x": (1, 8, 9, 9)}, {"w": (8, 4, 2, 2)}, strides=[2, 2])
    assert counts.conv == 2 * (4 * 18 * 18) * 8


@pytest.mark.parametrize("keys", [6, 77])
def test_attention(keys: int) -> None:
    heads, width = 4, 5
    # Heads are a separate dimension in 4-D inputs and share the last one in 3-D inputs.
    expected = 2 * 2 * (2 * heads * 6 * keys * width)
    kv = (2, heads, keys, width)
    four = one("Attention", {"q": (2, heads, 6, width), "k": kv, "v": kv})
    flat = (2, keys, heads * width)
    three = one(
        "Attention", {"q": (2, 6, heads * width), "k": flat, "v": flat}, q_num_heads=heads, kv_num_heads=heads
    )
    kind = "self_attention" if keys == 6 else "cross_attention"
    for counts in (four, three):
        assert getattr(counts, kind) == counts.flops == expected
    assert four.activation_bytes == 4 * (2 * prod((2, heads, 6, width)) + 2 * prod(kv))


def test_products_of_activations() -> None:
    assert one("MatMul", {"a": (2, 5, 3), "b": (2, 3, 7)}) == Counts(
        other=2 * 2 * 5 * 7 * 3, activation_bytes=4 * (30 + 42 + 70)
    )


def test_nothing_is_left_out_silently() -> None:
    with pytest.raises(CountError, match="Einsum"):
        one("Einsum", {"a": (2, 3), "b": (3, 4)}, equation="ij,jk->ik")
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Cast", ["places"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["y", "y"], ["out"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_empty_tensor_value_info("out")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    with pytest.raises(ShapeError, match="y has a shape that depends on values"):
        count(Graph(model, {"x": (4, 4)}))


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("base", "denoiser"),
        ("base", "decoder"),
        ("base", "encoder"),
        ("base", "text_encoder"),
        ("upscaler", "denoiser"),
        ("upscaler", "decoder"),
    ],
)
def test_a_bundle_counts_as_its_network_does(
    kind: str, part: PartName, request: pytest.FixtureRequest
) -> None:
    """A bundle's symbolic, optimised graph has the same products as the exporter's fixed-size output."""
    fixture, configs = {
        "base": ("small_bundle", SMALL),
        "upscaler": ("small_upscaler_bundle", SMALL_UPSCALER),
    }[kind]
    bundle = open_bundle(request.getfixturevalue(fixture))
    dims = {"B": 1, "R": 2, "P": 1, "L": 77, "h": 16, "w": 24}
    entry = bundle.manifest.parts[part]
    counts, plain = count_part(bundle.path, entry, dims), count(graph_of(configs, part, dims))
    assert counts.flops > 0
    for product in ("conv", "linear", "self_attention", "cross_attention", "other"):
        assert getattr(counts, product) == getattr(plain, product), product
    assert plain.parameters == entry.parameters
    assert counts.parameters == pytest.approx(entry.parameters, rel=1e-3)
    # Four times the pixels: four times the convolutions, more than four times the attention.
    larger = count_part(bundle.path, entry, dims | {"h": 32, "w": 48})
    assert larger.conv == 4 * counts.conv
    assert (
        larger.self_attention
        == {"denoiser": 16, "decoder": 16, "encoder": 16}.get(part, 1) * counts.self_attention
    )


# The largest network and one of each other kind; all rows would take minutes.
IN_FULL = [(0, "denoiser"), (8, "decoder"), (15, "text_encoder")]


@pytest.mark.parametrize(("row", "part"), IN_FULL, ids=[part for _, part in IN_FULL])
def test_full_size_agrees_with_the_reference(row: int, part: str) -> None:
    reference = REFERENCES[row]
    assert reference.part == part
    counts = count(weightless_graph(reference.configs, reference.part, reference.dims))
    reference.check(counts, 4)
    for kind in ("conv", "linear", "self_attention"):
        if getattr(counts, kind) > 0.02 * counts.flops:
            wrong = replace(counts, **{kind: int(getattr(counts, kind) * 1.05)})
            with pytest.raises(CountError, match="TFLOP"):
                reference.check(wrong, 4)


def test_a_reference_is_what_its_kinds_add_up_to() -> None:
    """Guards the table against typing errors."""
    for row in REFERENCES:
        kinds = row.conv + row.linear + row.self_attention + row.cross_attention
        assert kinds == pytest.approx(row.tflop, abs=1.6e-3), row
        assert row.gigabytes > 2e-9 * row.parameters


def test_weights_need_not_be_there(small_bundle: Path, tmp_path: Path) -> None:
    part = open_bundle(small_bundle).manifest.parts["decoder"]
    (tmp_path / "decoder").mkdir()
    model = onnx.load(small_bundle / part.onnx, load_external_data=False)
    (tmp_path / part.onnx).write_bytes(model.SerializeToString())
    dims = {"B": 1, "h": 8, "w": 8}
    assert count_part(tmp_path, part, dims) == count_part(small_bundle, part, dims)


def test_a_reference_names_what_differs() -> None:
    row: Reference = REFERENCES[0]
    with pytest.raises(
        CountError, match=r"denoiser of .* at 64x64, 2 rows: .* TFLOP counted, expected 1\.6085"
    ):
        row.check(Counts(conv=10**12), 4)
