"""Layers of an engine of TensorRT for RTX as kernels: bytes from the builder's report, operations from the graph.

Its builder needs no GPU, but has no target for compute capability 9.0: layers are those for another architecture, and
only the rates are an H100's. So a prediction from them shows what fusing all of the graph would give there.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

import onnx

from benchmarks.cost_model.counts import CountError
from benchmarks.cost_model.kernels import Kernel, Kind, Movement, Product

_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w*), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: .*?Metadata: (?P<onnx>.*)",
    re.S,
)
_TENSOR = re.compile(r"Name: ([^,]+), Dimensions: \[([\d,]*)\].*?Datatype: (\w+)")
_BYTES = {"Half": 2, "Float": 4, "Int64": 8, "Int32": 4, "UInt8": 1, "Bool": 1, "Int8": 1}
_TYPES = {"correlation", "gemm", "runtime_fusion", "kgen", "runtime_function"}
_ORDER: tuple[tuple[str, Kind], ...] = (
    ("GroupNormalization", "group norm"), ("LayerNormalization", "layer norm"), ("Gelu", "activation"),
    ("Concat", "copy"), ("Resize", "copy"), ("Split", "copy"), ("Add", "residual"), ("Transpose", "transpose"),
    ("Reshape", "transpose"), ("Attention", "transpose"),
)  # fmt: skip
"""Kind of a generated kernel: that of the first operator in this order which it contains."""


class LayerError(Exception):
    """A layer of the report is of an unknown type; the message names it."""


def build_layer_list(path: Path, shapes: Mapping[str, tuple[int, ...]], target: str) -> str:
    """Compile a graph at fixed shapes and return the builder's report.

    Args:
        target: such as ``SM89``.

    Raises:
        LayerError: the builder refused the graph.
    """
    from sd2rt.engines.tensorrt.packages import load_module
    from sd2rt.engines.tensorrt.trt_log import open_log

    trt = load_module("tensorrt-rtx")
    log = open_log(trt, record=True)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        raise LayerError(f"{path} cannot be read: {log.take_error()}")
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        tensor.shape = shapes[tensor.name]
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = False
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    config.add_optimization_profile(builder.create_optimization_profile())
    if builder.build_serialized_network(network, config) is None:
        raise LayerError(f"{path} was not compiled: {log.take_error()}")
    return next(text for text in reversed(log.layer_lists) if text.startswith("Layers:"))


def engine_kernels(report: str, nodes: Iterable[onnx.NodeProto], products: Iterable[Kernel]) -> list[Kernel]:
    """Kernels of an engine, one a layer.

    Args:
        nodes: of the graph that was compiled.
        products: kernels of that graph's products, by the CUDA provider's rules, for operations and shapes.

    Raises:
        LayerError: a layer's type is not known.
        CountError: the layers have other operations than the graph.
    """
    by_node = {kernel.node: kernel for kernel in products if kernel.operations}
    types = {node.name: node.op_type for node in nodes}
    layers = [match for text in _texts(report) if (match := _LAYER.search(text)) is not None]
    computed = [
        [by_node[name] for name in _nodes(match) if name in by_node and _computes(match, by_node[name])]
        for match in layers
    ]
    # Both halves of a gated layer's product name it.
    parts = Counter(kernel.node for found in computed for kernel in found)
    kernels = [
        _kernel(
            match,
            [types.get(name, "") for name in _nodes(match)],
            [_part(each, parts[each.node]) for each in found],
        )
        for match, found in zip(layers, computed, strict=True)
    ]
    expected, counted = (sum(kernel.operations for kernel in each) for each in (by_node.values(), kernels))
    # Products of a step's few coefficients may be computed by other means.
    if abs(counted - expected) > 1e-4 * expected:
        missing = sorted(set(by_node) - set(parts))[:3]
        raise CountError(
            f"an engine has {counted:,} operations, its graph {expected:,}; without a layer: {missing}"
        )
    return kernels


def _texts(report: str) -> list[str]:
    return re.split(r"\n(?=Name: )", report.partition("\nI/O Tensors:")[0])


def _nodes(match: re.Match[str]) -> list[str]:
    return list(dict.fromkeys(re.findall(r"\[ONNX Layer: ([^\]]*)\]", match["onnx"])))


def _computes(match: re.Match[str], product: Kernel) -> bool:
    """Return whether a layer that names a product computes it; what follows one may name it too.

    Raises:
        LayerError: the layer's type is not known.
    """
    if match["kind"] not in _TYPES:
        raise LayerError(f"layer {match['name']} is of type {match['kind']}, which {__name__} does not know")
    generated = match["kind"] in ("kgen", "runtime_function")
    return not generated or product.kind == ("attention" if "mha" in match["name"] else "step")


def _part(product: Kernel, parts: int) -> Kernel:
    shape = product.product
    if parts == 1 or shape is None:
        return product
    narrower = replace(shape, columns=shape.columns // parts)
    return replace(product, operations=product.operations // parts, product=narrower)


def _kernel(match: re.Match[str], types: list[str], products: list[Kernel]) -> Kernel:
    read, written, weights = (_bytes(match[key]) for key in ("inputs", "outputs", "constants"))
    moved = Kernel(match["name"], "step", read, written, weights)
    if products:
        first = products[0]
        shape = first.product
        if shape is not None and len(products) > 1 and first.kind == "product":
            columns = sum(kernel.product.columns for kernel in products if kernel.product is not None)
            shape = Product(shape.groups, shape.rows, columns, shape.depth)
        return replace(
            moved, kind=first.kind, operations=sum(kernel.operations for kernel in products), product=shape,
            engine="fused_mha" if first.kind == "attention" else first.engine,
        )  # fmt: skip
    kind = next((kind for op_type, kind in _ORDER if op_type in types), None)
    float32 = "Float" in match["outputs"] and "Half" not in match["outputs"]
    if kind is None or (float32 and kind != "layer norm"):
        kind = "step"
    movement: Movement = "sums" if kind in ("group norm", "layer norm") else "copies"
    return replace(moved, kind=kind, movement="moves" if kind in ("transpose", "copy") else movement)


def _bytes(tensors: str) -> int:
    """Bytes of the tensors of a list; one that is named twice counts once."""
    sizes: dict[str, int] = defaultdict(int)
    for name, sides, dtype in _TENSOR.findall(tensors):
        size = prod(int(side) for side in sides.split(",") if side) * _BYTES[dtype]
        sizes[name] = max(sizes[name], size)
    return sum(sizes.values())
