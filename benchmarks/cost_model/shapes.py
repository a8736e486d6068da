"""Infer the shape of every tensor of an ONNX graph at concrete sizes. External weights may be missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference
from onnx.external_data_helper import uses_external_data
from onnx.reference import ReferenceEvaluator

from sd2rt.export.graphs.cuda_forms.values import MICROSOFT

Shape = tuple[int, ...]

_SMALL = 64
"""Largest number of elements of a tensor that is evaluated: enough for shapes and Resize factors."""


class ShapeError(Exception):
    """A tensor's shape does not follow from the input shapes; the message names the operator."""


class Graph:
    """An ONNX graph with the shape of every tensor, given the input shapes.

    The graph is walked in order. Small tensors that follow from constants and shapes are evaluated
    (``onnx.reference``); the types of all others are inferred from their inputs
    (``onnx.shape_inference.infer_node_outputs``). Inferring the whole graph at once lacks those values and leaves 453
    tensors of an exported denoiser without a shape.

    Args:
        model: its external weights may be missing.
        inputs: the shape of each graph input.

    Raises:
        ShapeError: a shape depends on unknown values.
    """

    def __init__(self, model: onnx.ModelProto, inputs: Mapping[str, Shape]) -> None:
        self.nodes: tuple[onnx.NodeProto, ...] = tuple(model.graph.node)
        self.weights: dict[str, onnx.TensorProto] = {t.name: t for t in model.graph.initializer}
        self._types: dict[str, Any] = {}
        self._values: dict[str, NDArray[Any]] = {}
        self._opsets = list(model.opset_import)
        self._ir_version = model.ir_version
        for name, tensor in self.weights.items():
            self._types[name] = _type(tensor.data_type, tuple(tensor.dims))
            if math.prod(tensor.dims) <= _SMALL and not uses_external_data(tensor):
                self._values[name] = numpy_helper.to_array(tensor)
        for graph_input in model.graph.input:
            if graph_input.name not in self._types:
                dtype = graph_input.type.tensor_type.elem_type
                self._types[graph_input.name] = _type(dtype, tuple(inputs[graph_input.name]))
        for node in self.nodes:
            self._walk(node)

    @classmethod
    def load(cls, path: Path, inputs: Mapping[str, Shape]) -> Graph:
        """Load an ONNX file; raises like the class."""
        return cls(onnx.load(path, load_external_data=False), inputs)

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor; ShapeError if it has none, like a sequence."""
        type_proto = self._types.get(name)
        if type_proto is None or not type_proto.HasField("tensor_type"):
            raise ShapeError(f"{name} has no known shape")
        sides = type_proto.tensor_type.shape.dim
        if not type_proto.tensor_type.HasField("shape") or not all(
            side.HasField("dim_value") for side in sides
        ):
            raise ShapeError(f"{name} has a shape that depends on values")
        return tuple(side.dim_value for side in sides)

    @property
    def known_values(self) -> Set[str]:
        """Names of small tensors whose values follow from constants and shapes."""
        return self._values.keys()

    def dtype(self, name: str) -> str:
        """NumPy's name of a tensor's type."""
        return str(onnx.helper.tensor_dtype_to_np_dtype(self._types[name].tensor_type.elem_type).name)

    def element_bytes(self, name: str) -> int:
        """Bytes of one element of a tensor."""
        return int(onnx.helper.tensor_dtype_to_np_dtype(self._types[name].tensor_type.elem_type).itemsize)

    def _infer_microsoft(self, node: onnx.NodeProto) -> None:
        rule = _MICROSOFT_SHAPES.get(node.op_type)
        if rule is None:
            raise ShapeError(f"{node.domain}.{node.op_type} {node.name} has no rule: add it to {__name__}")
        shape = rule(node, [self.shape(name) for name in node.input if name])
        for name in node.output:
            if name:
                self._types[name] = _type(self._types[node.input[0]].tensor_type.elem_type, shape)

    def _walk(self, node: onnx.NodeProto) -> None:
        names = [name for name in node.input if name]
        if node.op_type == "Shape":
            sides = self.shape(node.input[0])
            attributes = {a.name: a.i for a in node.attribute}
            selected = sides[attributes.get("start", 0) : attributes.get("end", len(sides))]
            self._record(node.output[0], np.array(selected, np.int64))
        elif node.op_type != "SequenceAt" and names and all(name in self._values for name in names):
            self._evaluate(node, {name: self._values[name] for name in names})
        else:
            self._infer(node, names)
        if node.op_type == "Constant":
            self._evaluate(node, {})

    def _evaluate(self, node: onnx.NodeProto, values: Mapping[str, NDArray[Any]]) -> None:
        outputs = list(node.output)
        input_infos = [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in values.items()
        ]
        output_infos = [onnx.helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = onnx.helper.make_graph([node], "one", input_infos, output_infos)
        model = onnx.helper.make_model(graph, opset_imports=self._opsets, ir_version=self._ir_version)
        results = ReferenceEvaluator(model).run(None, dict(values))
        for name, value in zip(outputs, results, strict=True):
            if isinstance(value, list):
                self._infer(node, list(values))
            else:
                self._record(name, np.asarray(value))

    def _record(self, name: str, value: NDArray[Any]) -> None:
        dtype = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        self._types[name] = _type(dtype, value.shape)
        if value.size <= _SMALL:
            self._values[name] = value

    def _infer(self, node: onnx.NodeProto, names: list[str]) -> None:
        if node.op_type in ("GroupNormalization", "RMSNormalization"):
            # Defined in the standard as a function, without an inference rule.
            self._types[node.output[0]] = self._types[node.input[0]]
            return
        if node.domain == MICROSOFT:
            self._infer_microsoft(node)
            return
        version = next(o.version for o in self._opsets if o.domain in (node.domain, node.domain or "ai.onnx"))
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        try:
            types = shape_inference.infer_node_outputs(
                schema,
                node,
                {name: self._types[name] for name in names},
                {n: numpy_helper.from_array(self._values[n], n) for n in names if n in self._values},
                opset_imports=self._opsets,
                ir_version=self._ir_version,
            )
        except (KeyError, onnx.shape_inference.InferenceError) as error:
            raise ShapeError(f"{node.op_type} {node.name}: {' '.join(str(error).split())[:200]}") from error
        self._types.update(types)


def _same(node: onnx.NodeProto, shapes: list[Shape]) -> Shape:
    return shapes[0]


def _halved(node: onnx.NodeProto, shapes: list[Shape]) -> Shape:
    return (*shapes[0][:-1], shapes[0][-1] // 2)


def _nhwc_conv(node: onnx.NodeProto, shapes: list[Shape]) -> Shape:
    """X is [N, H, W, C_in], the weight [C_out, kernel ..., C_in]."""
    x, weight = shapes[:2]
    found = {a.name: tuple(a.ints) for a in node.attribute}
    kernel = found.get("kernel_shape", weight[1:-1])
    rank = len(kernel)
    pads, strides = found.get("pads", (0,) * (2 * rank)), found.get("strides", (1,) * rank)
    sides = [(x[1 + i] + pads[i] + pads[rank + i] - kernel[i]) // strides[i] + 1 for i in range(rank)]
    return (x[0], *sides, weight[0])


_MICROSOFT_SHAPES: dict[str, Callable[[onnx.NodeProto, list[Shape]], Shape]] = {
    "QuickGelu": _same,
    "BiasGelu": _same,
    "GroupNorm": _same,
    "SkipGroupNorm": _same,
    "SkipLayerNormalization": _same,
    "BiasSplitGelu": _halved,
    "NhwcConv": _nhwc_conv,
}
"""Shape of the first output of operators outside the standard, by the shapes of the inputs."""


def _type(dtype: int, shape: Shape) -> Any:
    return onnx.helper.make_tensor_type_proto(dtype, shape)
