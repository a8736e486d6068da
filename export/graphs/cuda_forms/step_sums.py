"""Weighted sums of a sampler step without a matrix product."""

from __future__ import annotations

import onnx_ir as ir

from sd2rt.export.graphs.cuda_forms.values import added, constant, is_constant, replace, sides, sort_and_clean


def step_sums(model: ir.Model) -> None:
    """Compute products of two computed values in float32 by ``Mul`` and ``ReduceSum``.

    Of a denoiser these are the sums of a step's few states and predictions. Its products in float16 need TF32 to be
    allowed (see :attr:`~sd2rt.engines.bundle.schema.Part.cuda_graph_takes_tf32`), which would round these.
    """
    graph = model.graph
    for node in [node for node in graph if node.op_type == "MatMul" and not node.domain]:
        left, right = node.inputs
        if left is None or right is None or left.dtype != ir.DataType.FLOAT:
            continue
        if is_constant(left) or is_constant(right) or not len(sides(left)) == len(sides(right)) == 3:
            continue
        batch, rows, depth = sides(left)
        columns = sides(right)[2]
        name = node.outputs[0].name
        # [B, m, k, 1] * [B, 1, k, n], summed over k.
        factors = (
            added("Unsqueeze", [left, constant(graph, "sums.last", [3])], f"{name}.left", like=left,
                  shape=[batch, rows, depth, 1]),
            added("Unsqueeze", [right, constant(graph, "sums.rows", [1])], f"{name}.right", like=right,
                  shape=[batch, 1, depth, columns]),
        )  # fmt: skip
        product = added(
            "Mul", [factor.outputs[0] for factor in factors], f"{name}.terms", like=left,
            shape=[batch, rows, depth, columns],
        )  # fmt: skip
        total = added(
            "ReduceSum", [product.outputs[0], constant(graph, "sums.depth", [2])], f"{name}.sum", {"keepdims": 0},
            like=node.outputs[0],
        )  # fmt: skip
        for new in (*factors, product, total):
            graph.append(new)
        replace(node.outputs[0], total.outputs[0])
    sort_and_clean(model)
