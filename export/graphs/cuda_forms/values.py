"""Values of a graph that forms look for: weights, and what a value was computed from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""

_OF_CONSTANTS = frozenset({"Transpose", "Concat", "Cast", "Identity", "Constant"})


def is_constant(value: ir.Value | None) -> bool:
    """Return whether a value is an initialiser, or computed from initialisers alone.

    ONNX Runtime computes the latter once, when it opens the graph.
    """
    if value is None:
        return False
    producer = value.producer()
    if producer is None:
        return value.is_initializer() or value.const_value is not None
    return producer.op_type in _OF_CONSTANTS and all(is_constant(source) for source in producer.inputs)


def producer_of(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that computes a value, if it is of this type in the standard domain."""
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == op_type and not producer.domain else None


def only_consumer(value: ir.Value, op_type: str) -> ir.Node | None:
    """The single node that reads a value, if it is of this type and the value is no output of the graph."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = next(iter(uses)).node
    return node if node.op_type == op_type and not node.domain else None


def permutation(node: ir.Node | None) -> tuple[int, ...]:
    """A Transpose's permutation; empty for no node."""
    return () if node is None else tuple(node.attributes["perm"].as_ints())


def sides(value: ir.Value) -> tuple[Any, ...]:
    """The dimensions of a value: numbers, symbols, or nothing if the shape is unknown."""
    if value.shape is None:
        return ()
    return tuple(side if isinstance(side, int) else side.value for side in value.shape)


def constant(graph: ir.Graph, name: str, numbers: Sequence[int]) -> ir.Value:
    """A constant of int64 numbers, created on first use."""
    value = graph.initializers.get(name)
    if value is None:
        array = np.array(numbers, np.int64)
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.INT64
        graph.register_initializer(value)
    return value


def added(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    attributes: dict[str, Any] | None = None,
    *,
    like: ir.Value,
    shape: Iterable[Any] | None = None,
    domain: str = "",
) -> ir.Node:
    """A node with one output, of the type of ``like`` and its shape unless another is given."""
    node = ir.node(op_type, inputs, attributes or {}, domain=domain)
    output = node.outputs[0]
    output.name, output.dtype = name, like.dtype
    output.shape = like.shape if shape is None else ir.Shape(shape)
    return node


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let everything that read ``old`` read ``new``, the graph's outputs included."""
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def sort_and_clean(model: ir.Model) -> None:
    """Sort the nodes, remove those and the constants that nothing reads, and import the operators' domains."""
    model.graph.sort()
    RemoveUnusedNodesPass()(model)
    if any(node.domain == MICROSOFT for node in model.graph):
        model.graph.opset_imports[MICROSOFT] = 1
