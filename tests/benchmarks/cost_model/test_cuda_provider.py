"""Kernels of single operators by hand, and of every form of a small denoiser against the count of products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.cost_model.counts import count
from benchmarks.cost_model.cuda_provider import Provider, UnknownOperatorError, kernels_of
from benchmarks.cost_model.full_graph import input_shapes, step_dims
from benchmarks.cost_model.kernels import Kernel, Product
from benchmarks.cost_model.load_time import rewritten
from benchmarks.cost_model.predict import operations_in
from benchmarks.cost_model.shapes import Graph, ShapeError
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.export.graphs.cuda_forms.forms import FORMS, apply_forms


def kernels(
    operator: str,
    inputs: Mapping[str, tuple[int, ...]],
    weights: Mapping[str, tuple[int, ...]] | None = None,
    provider: Provider | None = None,
    domain: str = "",
    **attributes: object,
) -> list[Kernel]:
    """Kernels of a graph of one operator, in float16."""
    weights = weights or {}
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(operator, [*inputs, *weights], ["out"], domain=domain, **attributes)],
            "one",
            [
                helper.make_tensor_value_info(n, TensorProto.FLOAT16, [None] * len(s))
                for n, s in inputs.items()
            ],
            [helper.make_empty_tensor_value_info("out")],
            [numpy_helper.from_array(np.ones(s, np.float16), name) for name, s in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 23)],
    )
    return kernels_of(Graph(rewritten(model), inputs), provider or Provider())


X, W, B = {"x": (2, 64, 9, 9)}, {"w": (96, 64, 3, 3)}, {"b": (96,)}
INTO, OUT, WEIGHT = 2 * 64 * 81 * 2, 2 * 96 * 81 * 2, 96 * 64 * 9 * 2


def test_a_convolution_converts_layouts_and_adds_its_bias() -> None:
    found = kernels("Conv", X, {**W, **B}, pads=[1, 1, 1, 1])
    assert [(k.kind, k.read, k.written, k.weights) for k in found] == [
        ("layout conversion", INTO, INTO, 0),
        ("layout conversion", 0, WEIGHT, WEIGHT),
        ("convolution", INTO, OUT, WEIGHT),
        ("layout conversion", OUT, OUT, 0),
        ("convolution bias", OUT, OUT, 0),
    ]
    assert found[2].operations == 2 * (2 * 81) * 96 * (64 * 9)
    assert found[2].product == Product(1, 2 * 81, 96, 64 * 9)


def test_options_change_a_convolutions_kernels() -> None:
    def counted(**options: bool) -> Counter[str]:
        found = kernels("Conv", X, {**W, **B}, Provider(**options), pads=[1, 1, 1, 1])  # type: ignore[arg-type]
        return Counter(kernel.kind for kernel in found)

    assert counted(fuse_conv_bias=True) == {"layout conversion": 3, "convolution": 1}
    assert counted(prefer_nhwc=True) == {"transpose": 2, "convolution": 1, "convolution bias": 1}
    (slow,) = (k for k in kernels("Conv", X, W, Provider(tensor_cores=False)) if k.kind == "convolution")
    assert slow.engine == "core_conv"
    assert Provider.of({"sdpa_kernel": "8", "prefer_nhwc": "1"}) == Provider(
        prefer_nhwc=True, attention="cudnn"
    )


def test_channels_last_needs_no_conversion() -> None:
    found = kernels(
        "NhwcConv",
        {"x": (2, 9, 9, 64)},
        {"w": (96, 3, 3, 64), **B},
        domain="com.microsoft",
        pads=[1, 1, 1, 1],
    )
    assert [(k.kind, k.read, k.written, k.weights) for k in found] == [
        ("convolution", INTO, OUT, WEIGHT),
        ("convolution bias", OUT, OUT, 0),
    ]
    norm = kernels("GroupNorm", {"x": (2, 9, 9, 64)}, {"g": (64,), "o": (64,)}, domain="com.microsoft")
    assert sum(kernel.read for kernel in norm) == 2 * INTO
    assert [kernel.launches for kernel in norm] == [1, 1, 1]


def test_attention_of_four_dimensions_transposes_inside() -> None:
    heads = {name: (2, 5, tokens, 64) for name, tokens in (("q", 256), ("k", 77), ("v", 77))}
    found = kernels("Attention", heads)
    assert [kernel.kind for kernel in found] == ["transpose", "attention", "transpose"]
    assert found[1].operations == 4 * 10 * 256 * 77 * 64
    assert found[1].product == Product(10, 256, 128, 77)
    tokens = {name: (2, count, 320) for name, count in (("q", 256), ("k", 77), ("v", 77))}
    (flat,) = kernels("Attention", tokens, q_num_heads=5, kv_num_heads=5)
    assert flat == found[1]


def test_products_read_their_weight_once() -> None:
    (product,) = kernels("MatMul", {"x": (2, 256, 320)}, {"w": (320, 640)})
    assert (product.read, product.written, product.weights) == (
        2 * 256 * 320 * 2,
        2 * 256 * 640 * 2,
        320 * 640 * 2,
    )
    assert product.product == Product(1, 512, 640, 320)
    (gemm,) = kernels("Gemm", {"x": (2, 320)}, {"w": (640, 320), "b": (640,)}, transB=1)
    # The result is filled with the bias first.
    assert (gemm.launches, gemm.read, gemm.written) == (2, (2 * 320 + 2 * 640) * 2, 2 * 2 * 640 * 2)


def test_elementwise_kernels_say_what_they_move() -> None:
    (added,) = kernels("Add", {"x": (2, 7), "y": (2, 7)})
    assert (added.kind, added.read, added.written, added.movement) == ("residual", 56, 28, "copies")
    (bias,) = kernels("Add", {"x": (2, 7)}, {"b": (7,)})
    assert (bias.kind, bias.movement) == ("bias", "broadcasts")
    assert kernels("Flatten", {"x": (2, 7, 7)}) == []


def test_unknown_operators_are_errors() -> None:
    with pytest.raises(UnknownOperatorError, match=r"ai\.onnx\.Softmax .* not known"):
        kernels("Softmax", {"x": (2, 7)})
    with pytest.raises(ShapeError, match=r"com\.microsoft\.Inverse .* no rule"):
        kernels("Inverse", {"x": (2, 7, 7)}, domain="com.microsoft")


@pytest.mark.parametrize(
    "forms", [(), *((name,) for name in FORMS), FORMS], ids=lambda forms: "+".join(forms) or "plain"
)
def test_every_form_has_the_operations_of_the_plain_graph(
    small_half_bundle: Path, forms: tuple[str, ...]
) -> None:
    part = open_bundle(small_half_bundle).manifest.parts["denoiser"]
    plain = onnx.load(small_half_bundle / part.onnx, load_external_data=False)
    shapes = input_shapes(plain, part, step_dims(64, 2))
    model = ir.load(small_half_bundle / part.onnx)
    apply_forms(model, forms)
    found = kernels_of(Graph(rewritten(ir.to_proto(model)), shapes))
    expected = count(Graph(plain, shapes))
    assert sum(kernel.operations for kernel in found) == operations_in(expected, forms)
    kinds = Counter(kernel.kind for kernel in found)
    convolutions = sum(node.op_type == "Conv" for node in plain.graph.node)
    norms = sum(node.op_type == "GroupNormalization" for node in plain.graph.node)
    assert kinds["convolution"] == convolutions
    assert kinds["layout conversion"] == (0 if "nhwc" in forms else 3 * convolutions)
    if "nhwc" in forms:
        assert kinds["group norm"] == 3 * norms
    else:
        # 16 kernels of the expanded norm, three of them casts of constants, and a SiLU behind most.
        assert kinds["group norm"] >= 16 * norms
    attentions = sum(node.op_type == "Attention" for node in plain.graph.node)
    inside = 0 if "attention-3d" in forms else 2 * attentions
    outside = sum(node.op_type == "Transpose" for node in model.graph)
    assert kinds["transpose"] <= inside + outside
