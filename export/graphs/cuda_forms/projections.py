"""Products of the same input as one: queries, keys and values; keys and values of the text; time embeddings."""

from __future__ import annotations

from collections import defaultdict

import onnx_ir as ir

from sd2rt.export.graphs.cuda_forms.merged import (
    MergedConstant,
    Product,
    concatenate,
    merge,
    product_of,
    split,
)
from sd2rt.export.graphs.cuda_forms.values import added, is_constant, producer_of, sides, sort_and_clean

_LEAST = 3
"""Fewer time projections than this are left alone."""


def merge_self_attention(model: ir.Model) -> list[MergedConstant]:
    """Compute queries, keys and values of each self-attention by one product."""
    graph, merged = model.graph, list[MergedConstant]()
    for index, products in enumerate(_attention_products(graph)):
        if _can_merge(products):
            merged += merge(graph, products, f"merged.qkv.{index}")
    sort_and_clean(model)
    return merged


def merge_text(model: ir.Model) -> list[MergedConstant]:
    """Compute the keys and values of all cross-attentions, which depend on the text alone, by one product a width."""
    graph, merged = model.graph, list[MergedConstant]()
    by_width = defaultdict[tuple[ir.Value, int], list[Product]](list)
    for _, *products in _attention_products(graph):
        for product in products:
            if product.x in graph.inputs:
                by_width[product.x, product.width].append(product)
    for (_, width), products in by_width.items():
        if _can_merge(products):
            merged += merge(graph, products, f"merged.text.{width}")
    sort_and_clean(model)
    return merged


def merge_time(model: ir.Model) -> list[MergedConstant]:
    """Compute the projections of the time embedding, one of each residual block, by one product a width."""
    graph, merged = model.graph, list[MergedConstant]()
    groups = defaultdict[tuple[ir.Value, int], list[ir.Node]](list)
    for node in graph:
        if node.op_type == "Gemm" and _is_linear(node) and len(node.inputs) == 3:
            x, weight, _ = node.inputs
            assert x is not None
            assert weight is not None
            groups[x, int(sides(weight)[0])].append(node)
    for (x, width), nodes in groups.items():
        if len(nodes) < _LEAST:
            continue
        name = f"merged.time.{width}"
        weight, weight_record = concatenate(
            graph, [_given(node, 1) for node in nodes], f"{name}.weight", axis=0
        )
        bias, bias_record = concatenate(graph, [_given(node, 2) for node in nodes], f"{name}.bias", axis=0)
        merged += [weight_record, bias_record]
        like = nodes[0].outputs[0]
        whole = [sides(like)[0], width * len(nodes)]
        product = added("Gemm", [x, weight, bias], f"{name}.product", {"transB": 1}, like=like, shape=whole)
        graph.append(product)
        split(graph, product.outputs[0], [node.outputs[0] for node in nodes], name, axis=1)
    sort_and_clean(model)
    return merged


def _attention_products(graph: ir.Graph) -> list[list[Product]]:
    """The products that compute queries, keys and values, of each Attention whose are."""
    found = []
    for node in graph:
        if node.op_type == "Attention":
            products = [product_of(_projected(value)) for value in node.inputs[:3]]
            if all(products):
                found.append([product for product in products if product is not None])
    return found


def _projected(value: ir.Value | None) -> ir.Value | None:
    """The value that was reshaped, transposed or cast to an input of Attention."""
    for op_type in ("Cast", "Transpose", "Reshape"):
        node = producer_of(value, op_type)
        if node is not None:
            value = node.inputs[0]
    return value


def _can_merge(products: list[Product]) -> bool:
    """Return whether products differ in weights alone."""
    return (
        len(products) > 1
        and len({id(product.x) for product in products}) == 1
        and len({product.width for product in products}) == 1
        and len({id(product.weight) for product in products}) == len(products)
        and len({product.bias is None for product in products}) == 1
    )


def _is_linear(node: ir.Node) -> bool:
    """Return whether a Gemm is a PyTorch linear layer: ``x W^T + b`` with constant W and b."""
    expected = {"transA": 0.0, "transB": 1.0, "alpha": 1.0, "beta": 1.0}
    defaults = {"transA": 0.0, "transB": 0.0, "alpha": 1.0, "beta": 1.0}
    values = {key: float(attribute.value) for key, attribute in node.attributes.items()}
    return {**defaults, **values} == expected and all(is_constant(value) for value in node.inputs[1:])


def _given(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
