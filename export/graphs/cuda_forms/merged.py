"""Weights that a form computes one product with, and the products merged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from sd2rt.export.graphs.cuda_forms.values import added, is_constant, producer_of, replace, sides


@dataclass(frozen=True, slots=True)
class MergedConstant:
    """Several weights of a graph as one: a Concat of them, in a graph that stores only the weights themselves.

    ONNX Runtime computes it when it opens the graph, after weights were replaced, and keeps the result alone. So
    nothing is stored twice, and a replaced weight is replaced in its only place.
    """

    name: str
    """The merged value."""
    sources: tuple[str, ...]
    """The initialisers, in order."""
    axis: int
    """The axis of the concatenation, in the merged value's orientation."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class MergedConstants:
    """The merges of all forms of a graph."""

    constants: tuple[MergedConstant, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all merged values: of the copies that are made while the graph is opened."""
        return sum(constant.nbytes for constant in self.constants)

    stored_bytes = 0
    """Bytes of merged weights in the bundle's files."""


@dataclass(frozen=True, slots=True)
class Product:
    """A product with a weight, ``x W + b`` or ``x W``."""

    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    result: ir.Value

    @property
    def width(self) -> int:
        """Columns of the result."""
        return int(sides(self.weight)[-1])


def product_of(value: ir.Value | None) -> Product | None:
    """The product with a constant weight that computes a value, or None."""
    if value is None:
        return None
    node, bias = producer_of(value, "MatMul"), None
    if node is None and (add := producer_of(value, "Add")) is not None:
        first, second = add.inputs
        node, bias = producer_of(first, "MatMul"), second
        if node is None:
            node, bias = producer_of(second, "MatMul"), first
        if not is_constant(bias) or bias is None or len(sides(bias)) != 1:
            return None
    if node is None:
        return None
    x, weight = node.inputs
    if x is None or weight is None or not is_constant(weight) or len(sides(weight)) != 2:
        return None
    return Product(x, weight, bias, value)


def merge(graph: ir.Graph, products: Sequence[Product], name: str) -> list[MergedConstant]:
    """Compute products of the same input as one, and split its result.

    They must be of equal width: ONNX Runtime's CUDA kernel for a Split of unequal ones copies tables from the host.

    Returns:
        The merged weight, and the merged bias if there are biases.
    """
    first = products[0]
    merged = [concatenate(graph, [product.weight for product in products], f"{name}.weight", axis=1)]
    total = first.width * len(products)
    whole = [*sides(first.result)[:-1], total]
    product = added("MatMul", [first.x, merged[0][0]], f"{name}.product", like=first.result, shape=whole)
    graph.append(product)
    result = product.outputs[0]
    biases = [product.bias for product in products if product.bias is not None]
    if biases:
        merged.append(concatenate(graph, biases, f"{name}.bias", axis=0))
        add = added("Add", [result, merged[1][0]], f"{name}.sum", like=result)
        graph.append(add)
        result = add.outputs[0]
    split(graph, result, [product.result for product in products], name, axis=len(whole) - 1)
    return [weight for _, weight in merged]


def split(graph: ir.Graph, value: ir.Value, parts: Sequence[ir.Value], name: str, axis: int) -> None:
    """Replace ``parts`` by equal parts of a value along an axis."""
    node = ir.node("Split", [value], {"axis": axis, "num_outputs": len(parts)}, num_outputs=len(parts))
    for index, (new, old) in enumerate(zip(node.outputs, parts, strict=True)):
        new.name, new.shape, new.dtype = f"{name}.{index}", old.shape, old.dtype
    graph.append(node)
    for new, old in zip(node.outputs, parts, strict=True):
        replace(old, new)


def concatenate(
    graph: ir.Graph, values: Sequence[ir.Value], name: str, axis: int
) -> tuple[ir.Value, MergedConstant]:
    """A Concat of constants along an axis, and its record."""
    shape = list(sides(values[0]))
    shape[axis] = sum(sides(value)[axis] for value in values)
    node = added("Concat", values, name, {"axis": axis}, like=values[0], shape=shape)
    graph.append(node)
    dtype = values[0].dtype
    assert dtype is not None
    sources = tuple(itertools.chain.from_iterable(map(_initializers, values)))
    return node.outputs[0], MergedConstant(name, sources, axis, math.prod(shape) * int(dtype.itemsize))


def _initializers(value: ir.Value) -> list[str]:
    producer = value.producer()
    if producer is None:
        return [value.name or ""]
    return [name for source in producer.inputs if source is not None for name in _initializers(source)]
