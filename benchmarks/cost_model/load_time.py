"""Rewrite a graph as ONNX Runtime 1.31 does when it loads one for its CUDA provider.

Level 1 of its optimisations knows no provider, and level 2 runs after nodes have one. Of those that apply to an
exported denoiser, a build without CUDA performs the same ones, which a test compares with its optimised models:

- what follows from weights and shapes alone is computed while loading;
- GroupNormalization has no CUDA kernel and is expanded into the operators of its definition, afterwards: casts of its
  weights stay in the graph and run in every call;
- ``x * sigmoid(x)`` becomes ``com.microsoft.QuickGelu``.

What differs: the provider for CPUs also fuses convolutions with activations, changes layouts and adds casts around
float16 operators that it lacks. Only the CUDA provider has ``prefer_nhwc``, whose transposes are counted by
:mod:`benchmarks.cost_model.cuda_provider`.
"""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import helper, inliner

from benchmarks.cost_model.shapes import Graph
from sd2rt.export.graphs.cuda_forms.values import MICROSOFT

NORM = "group_norm"
"""Prefix of the names of nodes that an expanded GroupNormalization consists of."""
_OPERATOR = "GroupNormalization"


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph as it runs. ``model`` keeps its nodes; its external weights may be missing."""
    before = {node.output[0] for node in model.graph.node if node.op_type != _OPERATOR}
    loaded = inliner.inline_selected_functions(model, [("", _OPERATOR)], False, True)
    for index, node in enumerate(loaded.graph.node):
        if node.output[0] not in before:
            node.name = f"{NORM}.{index}"
    _fuse_silu(loaded.graph)
    if all(opset.domain != MICROSOFT for opset in loaded.opset_import):
        loaded.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return loaded


def _fuse_silu(graph: onnx.GraphProto) -> None:
    uses = Counter(name for node in graph.node for name in node.input)
    outputs = {output.name for output in graph.output}
    sigmoids = {
        node.output[0]: node for node in graph.node if node.op_type == "Sigmoid" and uses[node.output[0]] == 1
    }
    fused: dict[str, onnx.NodeProto] = {}
    absorbed: set[str] = set()
    for node in graph.node:
        if node.op_type != "Mul":
            continue
        for value, gate in (tuple(node.input), tuple(node.input)[::-1]):
            if gate in sigmoids and gate not in outputs and sigmoids[gate].input[0] == value:
                silu = helper.make_node(
                    "QuickGelu", [value], list(node.output), node.name, domain=MICROSOFT, alpha=1.0
                )
                fused[node.output[0]] = silu
                absorbed.add(gate)
                break
    kept = [fused.get(node.output[0], node) for node in graph.node if node.output[0] not in absorbed]
    del graph.node[:]
    graph.node.extend(kept)


def computed_while_loading(graph: Graph) -> set[str]:
    """Names of tensors that no call computes on the device: weights, constants, shapes, what follows from them."""
    late = {name for node in graph.nodes if node.name.startswith(NORM) for name in node.output}
    names = {*graph.weights, "", *(name for name in graph.known_values if name not in late)}
    for node in graph.nodes:
        folded = node.op_type in ("Constant", "Shape") or all(name in names for name in node.input)
        # Shapes are computed on the host, without a kernel.
        if folded and (
            node.op_type == "Constant" or not late & {*node.output} or graph.dtype(node.output[0]) == "int64"
        ):
            names.update(node.output)
    return names
