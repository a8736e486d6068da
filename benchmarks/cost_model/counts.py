"""Count the floating-point operations and bytes of a part at concrete sizes, from its ONNX graph.

A multiply-add counts as two operations. Only products are counted: convolutions, linear layers, attention and the few
products of a sampler's step. Elementwise work (norms, activations, sums) is left out: it is a thousandth of the
operations, and fused kernels need not move its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path

import onnx

from benchmarks.cost_model.shapes import Graph, Shape
from sd2rt.engines.bundle.schema import Part, shape_of

_UNCOUNTED = {
    "Einsum", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DeformConv",
    "LSTM", "GRU", "RNN", "If", "Loop", "Scan",
}  # fmt: skip
"""Operators that may multiply but are not supported: ignoring them would give too low a count."""


class CountError(Exception):
    """A graph has an unsupported operator, or a count differs from its reference."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Operations and bytes of one call of a graph."""

    conv: int = 0
    linear: int = 0
    """Products with weights."""
    self_attention: int = 0
    """Attention with equal numbers of queries and keys: Q K^T and the product with V, masked positions included."""
    cross_attention: int = 0
    other: int = 0
    """Products of two activations outside attention."""
    parameters: int = 0
    """Floating-point elements of the initialisers in use."""
    weight_bytes: int = 0
    activation_bytes: int = 0
    """Bytes of the operands and results of all counted products, each read or written once."""
    score_bytes: int = 0
    """Bytes of the largest attention scores Q K^T, which an unfused kernel materialises."""

    @property
    def flops(self) -> int:
        return self.conv + self.linear + self.self_attention + self.cross_attention + self.other

    @property
    def bytes(self) -> int:
        """Bytes moved if no two counted operators are fused."""
        return self.weight_bytes + self.activation_bytes


def count_part(bundle: Path, part: Part, dims: Mapping[str, int]) -> Counts:
    """Count a part of a bundle. Its weights are not read.

    Args:
        dims: the size of each symbol of its inputs, as in :meth:`sd2rt.engines.interface.Engine.session`.

    Raises:
        CountError: the graph has an unsupported operator.
        ShapeError: a shape cannot be inferred.
    """
    return count(Graph.load(bundle / part.onnx, {t.name: shape_of(t, dims) for t in part.inputs}))


def count(graph: Graph) -> Counts:
    """Count a graph; CountError if it has an unsupported operator."""
    totals = dict.fromkeys((f.name for f in fields(Counts)), 0)
    weights = _from_weights(graph)
    for node in graph.nodes:
        if node.op_type in _UNCOUNTED:
            raise CountError(
                f"{node.op_type} {node.name} is not supported: add it to benchmarks/cost_model/counts.py"
            )
        product = _product(graph, node, weights)
        if product is None:
            continue
        kind, flops = product
        totals[kind] += flops
        moved = {name for name in (*node.input, *node.output) if name and name not in weights}
        totals["activation_bytes"] += sum(prod(graph.shape(n)) * graph.element_bytes(n) for n in moved)
        if node.op_type == "Attention":
            totals["score_bytes"] = max(totals["score_bytes"], _score_bytes(graph, node))
    used = {name for node in graph.nodes for name in node.input}
    for name, tensor in graph.weights.items():
        if name in used and onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).kind == "f":
            totals["parameters"] += prod(tensor.dims)
            totals["weight_bytes"] += prod(tensor.dims) * graph.element_bytes(name)
    return Counts(**totals)


def _from_weights(graph: Graph) -> set[str]:
    """Names of initialisers and of tensors computed only from them and constants, such as transposed weights."""
    names = {*graph.weights, ""}
    for node in graph.nodes:
        if all(name in names for name in node.input):
            names.update(node.output)
    return names


def _product(graph: Graph, node: onnx.NodeProto, weights: set[str]) -> tuple[str, int] | None:
    """Kind and operations of a node's product; None if the node is not a product."""
    ins = [graph.shape(name) if name else () for name in node.input] if node.op_type in _PRODUCTS else []
    if not ins or all(name in weights for name in node.input):
        return None
    out = graph.shape(node.output[0])
    kind = "linear" if any(name in weights for name in node.input[:2]) else "other"
    match node.op_type:
        case "MatMul":
            return kind, 2 * prod(out) * ins[0][-1]
        case "Gemm":
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            return kind, 2 * prod(out) * ins[0][0 if transposed else 1]
        case "Conv":
            # The weight is [C_out, C_in / groups, kernel ...].
            return "conv", 2 * prod(out) * prod(ins[1][1:])
        case "ConvTranspose":
            # The weight is [C_in, C_out / groups, kernel ...], and each input element is multiplied with one row.
            return "conv", 2 * prod(ins[0]) * prod(ins[1][1:])
        case _:
            return _attention(node, ins, out)


def _score_bytes(graph: Graph, node: onnx.NodeProto) -> int:
    query, key = (graph.shape(name) for name in node.input[:2])
    heads = next((a.i for a in node.attribute if a.name == "q_num_heads"), 1)
    scores = query[0] * heads * query[1] * key[1] if len(query) == 3 else prod(query[:3]) * key[2]
    return scores * graph.element_bytes(node.input[0])


_PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Attention"}


def _attention(node: onnx.NodeProto, ins: list[Shape], out: Shape) -> tuple[str, int]:
    """Count ONNX's Attention: Q [B, H, N, D] or [B, N, H D]; K and V have M rows; the output has V's width."""
    query, key = ins[:2]
    if len(query) == 4:
        rows, keys, width = prod(query[:-1]), key[2], query[3] + out[3]
    else:
        # The heads share the last axis, so their widths add up to it.
        rows, keys, width = prod(query[:-1]), key[1], query[2] + out[2]
    n = query[2] if len(query) == 4 else query[1]
    return ("self_attention" if n == keys else "cross_attention"), 2 * rows * keys * width
