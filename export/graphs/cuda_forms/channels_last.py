"""Convolutions and normalisations on [batch, height, width, channels]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from sd2rt.export.graphs.cuda_forms.values import (
    MICROSOFT,
    added,
    constant,
    permutation,
    producer_of,
    replace,
    sides,
    sort_and_clean,
)

_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Sigmoid"})


def channels_last(model: ir.Model) -> None:
    """Compute convolutions by ``NhwcConv`` and group normalisations by ``GroupNorm``, with SiLU inside.

    What lies between them follows. Transposes remain where the layout changes: before the first convolution, after
    the last, and at operators that need the channels first. Those around a transformer's reshapes vanish.

    Weights stay in PyTorch's order in the file. Their transposes are constants, which ONNX Runtime computes when it
    opens the graph; ``NhwcConv`` takes the weight of a session with optimisations switched off in the wrong order.
    """
    _ChannelsLast(model.graph).rewrite()
    sort_and_clean(model)


class _ChannelsLast:
    """Adds to a graph the counterpart of each value that has its channels last."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._last: dict[ir.Value, ir.Value] = {}
        self._rewritten: set[ir.Node] = set()

    def rewrite(self) -> None:
        rules: dict[str, Callable[[ir.Node], ir.Value | None]] = {
            "Conv": self._convolution,
            "GroupNormalization": self._normalisation,
            "Concat": self._concatenation,
            "Resize": self._resize,
            "Transpose": self._transpose,
            "Shape": self._shape,
            **dict.fromkeys(_ELEMENTWISE, self._elementwise),
        }
        for node in list(self._graph):
            rule = rules.get(node.op_type)
            if rule is None or node.domain or node in self._rewritten:
                continue
            result = rule(node)
            if result is not None:
                self._rewritten.add(node)
                self._last[node.outputs[0]] = result
        self._return_to_first()

    def _add(
        self,
        op_type: str,
        inputs: list[ir.Value | None],
        like: ir.Value,
        *,
        attributes: Any = None,
        domain: str = "",
    ) -> ir.Value:
        """Add a node whose result is ``like``, with its channels last."""
        node = added(
            op_type, inputs, f"{like.name}.last", attributes, like=like, shape=_permuted(like), domain=domain
        )
        self._graph.append(node)
        return node.outputs[0]

    def _to_last(self, value: ir.Value) -> ir.Value:
        """A value's counterpart, by a transpose if it has none."""
        if value not in self._last:
            self._last[value] = self._add("Transpose", [value], value, attributes={"perm": _TO_LAST})
        return self._last[value]

    def _convolution(self, node: ir.Node) -> ir.Value | None:
        x, weight, *bias = node.inputs
        assert x is not None
        assert weight is not None
        if len(sides(weight)) != 4 or node.attributes["group"].as_int() != 1:
            return None
        return self._add(
            "NhwcConv", [self._to_last(x), self._to_last(weight), *bias], node.outputs[0],
            attributes=dict(node.attributes), domain=MICROSOFT,
        )  # fmt: skip

    def _normalisation(self, node: ir.Node) -> ir.Value | None:
        x, gain, offset = node.inputs
        assert x is not None
        if x not in self._last:
            return None
        normalised = node.outputs[0]
        silu = _silu_of(normalised)
        attributes = {
            "groups": node.attributes["num_groups"].as_int(),
            "epsilon": node.attributes["epsilon"].as_float(),
            "activation": int(silu is not None),
            "channels_last": 1,
        }
        parameters = [self._float32(value) for value in (gain, offset)]
        result = self._add(
            "GroupNorm", [self._last[x], *parameters], normalised, attributes=attributes, domain=MICROSOFT
        )
        if silu is None:
            return result
        self._rewritten |= {node, *(use.node for use in normalised.uses())}
        self._last[silu] = result
        return None

    def _float32(self, value: ir.Value | None) -> ir.Value | None:
        """A constant in float32, in which the operator takes its parameters."""
        if value is None or value.dtype == ir.DataType.FLOAT:
            return value
        cast = added("Cast", [value], f"{value.name}.float32", {"to": ir.DataType.FLOAT}, like=value)
        cast.outputs[0].dtype = ir.DataType.FLOAT
        self._graph.append(cast)
        return cast.outputs[0]

    def _concatenation(self, node: ir.Node) -> ir.Value | None:
        if node.attributes["axis"].as_int() != 1 or not any(value in self._last for value in node.inputs):
            return None
        inputs = [None if value is None else self._to_last(value) for value in node.inputs]
        return self._add("Concat", inputs, node.outputs[0], attributes={"axis": 3})

    def _resize(self, node: ir.Node) -> ir.Value | None:
        x = node.inputs[0]
        if x not in self._last or node.attributes["mode"].as_string() != "nearest":
            return None
        factors = [self._reordered(value) for value in node.inputs[1:]]
        return self._add(
            "Resize", [self._last[x], *factors], node.outputs[0], attributes=dict(node.attributes)
        )

    def _reordered(self, numbers: ir.Value | None) -> ir.Value | None:
        """Four numbers, one a dimension, in the order of dimensions with the channels last."""
        if numbers is None or not numbers.name or sides(numbers) == (0,):
            return numbers
        order = constant(self._graph, "channels_last.dimensions.0231", _TO_LAST)
        node = added("Gather", [numbers, order], f"{numbers.name}.last", {"axis": 0}, like=numbers)
        self._graph.append(node)
        return node.outputs[0]

    def _transpose(self, node: ir.Node) -> ir.Value | None:
        x, output = node.inputs[0], node.outputs[0]
        assert x is not None
        if permutation(node) == _TO_FIRST:
            # The transpose remains for those that read its result with the channels first.
            self._last[output] = x
        elif permutation(node) == _TO_LAST and x in self._last:
            replace(output, self._last[x])
            self._rewritten.add(node)
        return None

    def _shape(self, node: ir.Node) -> None:
        """Read the dimensions of the value with its channels last, and put them in order."""
        x, result = node.inputs[0], node.outputs[0]
        if x not in self._last:
            return
        start, end = (node.attributes.get(name) for name in ("start", "end"))
        wanted = range(4)[slice(start and start.as_int(), end and end.as_int())]
        places = [_TO_LAST.index(dimension) for dimension in wanted]
        whole = added("Shape", [self._last[x]], f"{result.name}.whole", like=result, shape=[4])
        order = constant(self._graph, f"channels_last.dimensions.{''.join(map(str, places))}", places)
        chosen = added("Gather", [whole.outputs[0], order], f"{result.name}.last", {"axis": 0}, like=result)
        self._graph.extend([whole, chosen])
        replace(result, chosen.outputs[0])
        self._rewritten.add(node)

    def _elementwise(self, node: ir.Node) -> ir.Value | None:
        if len(sides(node.outputs[0])) != 4 or not any(value in self._last for value in node.inputs):
            return None
        inputs = [self._operand(value) for value in node.inputs]
        return self._add(node.op_type, list(inputs), node.outputs[0])

    def _operand(self, value: ir.Value | None) -> ir.Value | None:
        if value is None or len(sides(value)) != 4:
            return value
        if value not in self._last and sides(value)[2:] == (1, 1):
            source = _before_unsqueeze(value)
            if source is not None:
                axes = constant(self._graph, "channels_last.pixel", (1, 2))
                self._last[value] = self._add("Unsqueeze", [source, axes], value)
        return self._to_last(value)

    def _return_to_first(self) -> None:
        """Transpose what other operators, and the graph's outputs, read with the channels first."""
        for value, last in self._last.items():
            producer = value.producer()
            if producer is None or producer not in self._rewritten:
                continue
            readers = [
                use
                for use in value.uses()
                if use.node not in self._rewritten and use.node.outputs[0] is not last
            ]
            if not readers and not value.is_graph_output():
                continue
            node = added("Transpose", [last], f"{value.name}.first", {"perm": _TO_FIRST}, like=value)
            self._graph.append(node)
            for use in readers:
                use.node.replace_input_with(use.idx, node.outputs[0])
            if value.is_graph_output():
                replace(value, node.outputs[0])


def _permuted(value: ir.Value) -> list[Any]:
    known = sides(value)
    return [known[index] for index in _TO_LAST]


def _silu_of(value: ir.Value) -> ir.Value | None:
    """``x * sigmoid(x)`` of a value that nothing else reads."""
    uses = list(value.uses())
    by_type = {use.node.op_type: use.node for use in uses}
    if len(uses) != 2 or set(by_type) != {"Sigmoid", "Mul"} or value.is_graph_output():
        return None
    sigmoid, product = by_type["Sigmoid"], by_type["Mul"]
    if {*product.inputs} != {value, sigmoid.outputs[0]} or len(sigmoid.outputs[0].uses()) != 1:
        return None
    return product.outputs[0]


def _before_unsqueeze(value: ir.Value) -> ir.Value | None:
    """The two-dimensional value that was unsqueezed to [batch, channels, 1, 1]."""
    source: ir.Value | None = value
    while source is not None and (node := producer_of(source, "Unsqueeze")) is not None:
        source = node.inputs[0]
    return source if source is not None and len(sides(source)) == 2 else None
