"""Bias, split, GELU and product of a gated feed-forward layer as one operator."""

from __future__ import annotations

from collections.abc import Container

import onnx_ir as ir

from sd2rt.export.graphs.cuda_forms.merged import product_of
from sd2rt.export.graphs.cuda_forms.values import (
    MICROSOFT,
    added,
    only_consumer,
    producer_of,
    replace,
    sides,
    sort_and_clean,
)

WIDTHS = (2560, 5120, 10240)
"""Widths before the split for which ONNX Runtime 1.31's BiasSplitGelu has a kernel."""


def bias_split_gelu(model: ir.Model, widths: Container[int] = WIDTHS) -> None:
    """Replace the operators between the two products of GEGLU by ``BiasSplitGelu``, at widths that it has."""
    graph = model.graph
    for node in [node for node in graph if node.op_type == "Split"]:
        product = product_of(node.inputs[0])
        if product is None or product.bias is None or len(node.outputs) != 2 or product.width not in widths:
            continue
        rank = len(sides(product.result))
        if rank != 3 or node.attributes["axis"].as_int() not in (-1, rank - 1):
            continue
        gated = _gated(*node.outputs)
        if gated is None:
            continue
        add = producer_of(product.result, "Add")
        assert add is not None
        multiplied = next(value for value in add.inputs if value is not product.bias)
        new = added(
            "BiasSplitGelu", [multiplied, product.bias], f"{gated.name}.gelu",
            like=gated, domain=MICROSOFT,
        )  # fmt: skip
        graph.append(new)
        replace(gated, new.outputs[0])
    sort_and_clean(model)


def _gated(left: ir.Value, right: ir.Value) -> ir.Value | None:
    """``left * gelu(right)`` with the exact GELU, if nothing else reads the two."""
    gelu, product = only_consumer(right, "Gelu"), only_consumer(left, "Mul")
    if gelu is None or product is None:
        return None
    approximate = gelu.attributes.get("approximate")
    if approximate is not None and approximate.as_string() != "none":
        return None
    result: ir.Value = product.outputs[0]
    return result if only_consumer(gelu.outputs[0], "Mul") is product else None
