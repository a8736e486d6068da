"""Layers of an engine from the builder's report, and their operations from the graph."""

from __future__ import annotations

import pytest
from onnx import helper

from benchmarks.cost_model.counts import CountError
from benchmarks.cost_model.kernels import Kernel, Product
from benchmarks.cost_model.rtx_layers import LayerError, engine_kernels


def tensor(name: str, sides: str, dtype: str = "Half") -> str:
    shape = f"Dimensions: [{sides}], Strides: [1], StrideOrder: [0]"
    return f"{{ Name: {name}, {shape}, Datatype: {dtype}, Format: (Linear) x }}"


def layer(name: str, kind: str, inputs: str, constants: str, outputs: str, *nodes: str) -> str:
    onnx = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [{inputs}], Constants: [{constants}], Outputs: [{outputs}], "
        f"TacticName: t, StreamId: 0, Metadata: {onnx}"
    )


NODES = [
    helper.make_node(op_type, ["x"], ["y"], name=name)
    for name, op_type in (
        ("conv", "Conv"), ("norm", "GroupNormalization"), ("fc", "MatMul"), ("add", "Add"), ("gelu", "Gelu"),
        ("mha", "Attention"), ("cat", "Concat"),
    )
]  # fmt: skip
PRODUCTS = [
    Kernel("conv", "convolution", operations=600, engine="conv", product=Product(1, 10, 5, 6)),
    Kernel("fc", "product", operations=400, engine="gemm", product=Product(1, 10, 20, 1)),
    Kernel("mha", "attention", operations=200, engine="flash", product=Product(2, 5, 10, 1)),
    Kernel("conv", "layout conversion", read=5),
]
LAYERS = [
    layer("conv_1", "correlation", tensor("a", "2,8"), f"{tensor('w', '8,8')}, {tensor('s', '1', 'Float')}",
          tensor("b", "2,8"), "conv"),
    layer("__myl_SiluGnor", "kgen", tensor("b", "2,8"), "", tensor("c", "2,8"), "norm"),
    # Both halves of a gated layer's product name it, and what follows a product may too.
    layer("__myl_FcGelu", "runtime_fusion", tensor("c", "2,8"), tensor("w1", "8,4"), tensor("d", "2,4"),
          "fc", "add", "gelu"),
    layer("__myl_FcMul", "runtime_fusion", tensor("c", "2,8"), tensor("w2", "8,4"), tensor("e", "2,4"), "fc", "add"),
    layer("__myl_Add", "kgen", tensor("e", "2,4"), "", tensor("f", "2,4"), "fc", "add"),
    layer("_gemm_mha_v2", "kgen", f"{tensor('f', '2,4')}, {tensor('f', '2,4')}", "", tensor("g", "2,4"), "mha"),
    layer("__myl_Conc", "runtime_function", tensor("g", "2,4"), "", tensor("h", "2,4"), "cat"),
]  # fmt: skip


def report(*layers: str) -> str:
    return "Layers:\n" + "\n".join(layers) + "\nI/O Tensors:\nName: x"


def test_layers_become_kernels() -> None:
    kernels = engine_kernels(report(*LAYERS), NODES, PRODUCTS)
    assert [(k.kind, k.operations, k.engine) for k in kernels] == [
        ("convolution", 600, "conv"), ("group norm", 0, "cores"), ("product", 200, "gemm"), ("product", 200, "gemm"),
        ("residual", 0, "cores"), ("attention", 200, "fused_mha"), ("copy", 0, "cores"),
    ]  # fmt: skip
    assert (kernels[0].read, kernels[0].written, kernels[0].weights) == (32, 32, 2 * 64 + 4)
    assert kernels[2].product == Product(1, 10, 10, 1)
    # A tensor that a layer reads twice is read once.
    assert kernels[5].read == 16
    assert kernels[1].movement == "sums"


def test_a_missing_product_is_an_error() -> None:
    with pytest.raises(CountError, match=r"1,000 operations, its graph 1,200; without a layer: \['mha'\]"):
        engine_kernels(report(*LAYERS[:5]), NODES, PRODUCTS)


def test_an_unknown_layer_is_an_error() -> None:
    strange = layer("x", "mystery", tensor("a", "2"), "", tensor("b", "2"), "conv")
    with pytest.raises(LayerError, match="mystery"):
        engine_kernels(report(strange), NODES, PRODUCTS)
