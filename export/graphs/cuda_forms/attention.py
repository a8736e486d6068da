"""Attention on [batch, tokens, width] instead of [batch, heads, tokens, width of a head]."""

from __future__ import annotations

import onnx_ir as ir

from sd2rt.export.graphs.cuda_forms.values import (
    added,
    only_consumer,
    permutation,
    producer_of,
    replace,
    sides,
    sort_and_clean,
)

_SWAPPED = (0, 2, 1, 3)


def attention_3d(model: ir.Model) -> None:
    """Give Attention its inputs as products return them, and its number of heads as an attribute.

    ONNX Runtime's flash kernel reads and writes that layout. With four dimensions the graph transposes to the other
    one, and the kernel's wrapper transposes the queries and the result back.
    """
    graph = model.graph
    for node in [node for node in graph if node.op_type == "Attention"]:
        sources = [_tokens(value) for value in node.inputs[:3]]
        target = _joined(node.outputs[0])
        if target is None or not all(sources):
            continue
        heads = {name: sides(value)[1] for name, value in zip("qk", node.inputs[:2], strict=True) if value}
        if not all(isinstance(count, int) for count in heads.values()):
            continue
        result, cast = target
        inputs: list[ir.Value | None] = []
        for value, source in zip(node.inputs[:3], sources, strict=True):
            assert source is not None
            assert value is not None
            inputs.append(_cast(graph, source, value))
        attributes = dict(node.attributes)
        attributes["q_num_heads"] = ir.AttrInt64("q_num_heads", heads["q"])
        attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", heads["k"])
        name = node.outputs[0].name
        new = added(
            "Attention", [*inputs, *node.inputs[3:]], f"{name}.tokens", attributes, like=node.outputs[0],
            shape=sides(result),
        )  # fmt: skip
        graph.append(new)
        output = new.outputs[0]
        if cast is not None:
            back = added("Cast", [output], f"{name}.tokens.cast", dict(cast.attributes), like=result)
            graph.append(back)
            output = back.outputs[0]
        replace(result, output)
    sort_and_clean(model)


def _tokens(value: ir.Value | None) -> ir.Value | None:
    """The three-dimensional value that was reshaped, transposed and perhaps cast to an input of Attention."""
    cast = producer_of(value, "Cast")
    transpose = producer_of(value if cast is None else cast.inputs[0], "Transpose")
    reshape = producer_of(transpose.inputs[0], "Reshape") if transpose is not None else None
    if reshape is None or permutation(transpose) != _SWAPPED:
        return None
    source = reshape.inputs[0]
    return source if source is not None and len(sides(source)) == 3 else None


def _joined(value: ir.Value) -> tuple[ir.Value, ir.Node | None] | None:
    """The three-dimensional value that a result of Attention is transposed and reshaped to, and the cast between."""
    cast = only_consumer(value, "Cast")
    transpose = only_consumer(value if cast is None else cast.outputs[0], "Transpose")
    if transpose is None or permutation(transpose) != _SWAPPED:
        return None
    reshape = only_consumer(transpose.outputs[0], "Reshape")
    if reshape is None or len(sides(reshape.outputs[0])) != 3:
        return None
    return reshape.outputs[0], cast


def _cast(graph: ir.Graph, source: ir.Value, value: ir.Value) -> ir.Value:
    """``source``, cast as ``value`` was."""
    cast = producer_of(value, "Cast")
    if cast is None:
        return source
    new = added(
        "Cast", [source], f"{value.name}.tokens", dict(cast.attributes), like=value, shape=sides(source)
    )
    graph.append(new)
    return new.outputs[0]
