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
        source = node.inputs[0]
        product = product_of(source)
        if product is None or product.bias is None or len(node.outputs) != 2 or product.width not in widths:
            continue
        rank = len(sides(product.result))
        if rank != 3 or node.attributes["axis"].as_int() not in (-1, rank - 1):
            continue
        left, right = node.outputs
        gelu = only_consumer(right, "Gelu")
        gated = only_consumer(left, "Mul")
        if (
            gelu is None
            or gated is None
            or not _exact(gelu)
            or only_consumer(gelu.outputs[0], "Mul") is not gated
        ):
            continue
        add = producer_of(source, "Add")
        assert add is not None
        multiplied = next(value for value in add.inputs if value is not product.bias)
        new = added(
            "BiasSplitGelu", [multiplied, product.bias], f"{gated.outputs[0].name}.gelu",
            like=gated.outputs[0], domain=MICROSOFT,
        )  # fmt: skip
        graph.append(new)
        replace(gated.outputs[0], new.outputs[0])
    sort_and_clean(model)


def _exact(gelu: ir.Node) -> bool:
    approximate = gelu.attributes.get("approximate")
    return approximate is None or approximate.as_string() == "none"
