"""Kernels that ONNX Runtime 1.31's CUDA provider launches for a graph at concrete sizes, with bytes and operations.

By reading its sources and the names in its 1.31.1 library; no GPU has confirmed it:

- A convolution in NCHW runs cuDNN's plan, which converts input, weights and output to channels last and back. Its
  bias is a kernel of its own, unless ``fuse_conv_bias`` is set. ``NhwcConv`` converts nothing in a call: weights are
  reordered when the graph is opened.
- Attention of float16 without a mask takes FlashAttention 2, which wants [batch, tokens, heads, width]. With four
  dimensions, queries and the result are transposed inside the operator, besides the graph's own transposes.
- ``Gemm`` first fills its result with the bias. The bias of a ``MatMul`` is an ``Add``.
- ``com.microsoft.GroupNorm`` clears its sums, sums, and scales: three kernels, two of which read the input.
- Reshape and the like launch nothing.

An operator without a rule is an error, never free.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import onnx

from benchmarks.cost_model.kernels import Engine, Kernel, Kind, Movement, Product
from benchmarks.cost_model.load_time import NORM, computed_while_loading
from benchmarks.cost_model.shapes import Graph, Shape

_VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
_ELEMENTWISE = {
    "Abs", "Add", "Cast", "Cos", "Div", "Equal", "Exp", "Gelu", "LessOrEqual", "Mul", "Neg", "Pow", "QuickGelu",
    "BiasGelu", "Sigmoid", "Sin", "Sqrt", "Sub", "Where",
}  # fmt: skip
_REDUCTIONS = {"ReduceMean", "ReduceSum", "LayerNormalization", "SkipLayerNormalization"}
_COPIES = {"Concat", "Split", "Resize", "Expand"}
_SELECTIONS = {"Gather", "Slice"}
"""Of these inputs only what is selected is read."""
_ATTENTION = {"1": "flash", "2": "efficient", "8": "cudnn"}


class UnknownOperatorError(Exception):
    """An operator has no rule; the message names it."""


@dataclass(frozen=True, slots=True)
class Provider:
    """Options of the provider that change its kernels."""

    prefer_nhwc: bool = False
    fuse_conv_bias: bool = False
    attention: Literal["flash", "efficient", "cudnn"] = "flash"
    tensor_cores: bool = True
    """False: convolutions run without tensor cores. ONNX Runtime drops cuDNN's plans that have the note
    ``TENSOR_CORE`` if ``use_tf32`` is 0, whatever the type. Whether a plan for float16 is left is unknown."""

    @classmethod
    def of(cls, options: Mapping[str, str], *, tensor_cores: bool = True) -> Provider:
        """From ONNX Runtime's names and values; an algorithm search is not known to change kernels."""
        kernel = _ATTENTION[options.get("sdpa_kernel", "1")]
        assert kernel in ("flash", "efficient", "cudnn")
        return cls(
            options.get("prefer_nhwc") == "1", options.get("fuse_conv_bias") == "1", kernel, tensor_cores  # type: ignore[arg-type]
        )  # fmt: skip


def kernels_of(graph: Graph, provider: Provider = Provider()) -> list[Kernel]:
    """Kernels of a graph from :func:`~benchmarks.cost_model.load_time.rewritten`, in order.

    Raises:
        UnknownOperatorError: an operator has no rule.
        ShapeError: a shape cannot be inferred.
    """
    return _Walk(graph, provider).kernels()


class _Walk:
    def __init__(self, graph: Graph, provider: Provider) -> None:
        self._graph, self._provider = graph, provider
        self._constant = computed_while_loading(graph)
        self._producers = {name: node for node in graph.nodes for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.nodes:
            for name in node.input:
                self._readers[name].append(node)

    def kernels(self) -> list[Kernel]:
        return [
            kernel
            for node in self._graph.nodes
            if node.op_type not in _VIEWS and not all(name in self._constant for name in node.output if name)
            for kernel in self._kernels(node)
        ]

    def _kernels(self, node: onnx.NodeProto) -> list[Kernel]:
        match node.op_type:
            case "Conv":
                return self._convolution(node)
            case "NhwcConv":
                return self._channels_last(node)
            case "MatMul" | "Gemm":
                return [self._product(node)]
            case "Attention":
                return self._attention(node)
            case "GroupNorm":
                x = self._bytes(node.input[0])
                label = node.name or node.output[0]
                return [
                    Kernel(label, "group norm", written=self._graph.shape(node.input[0])[0] * 64 * 4),
                    Kernel(label, "group norm", read=x, movement="sums"),
                    Kernel(label, "group norm", read=x, written=x, movement="sums"),
                ]
            case _:
                return [self._moving(node)]

    def _moving(self, node: onnx.NodeProto) -> Kernel:
        kind = self._kind(node)
        written = sum(self._bytes(name) for name in node.output if name)
        read = sum(
            self._bytes(name) for name in dict.fromkeys(node.input) if name and not self._on_host(name)
        )
        movement: Movement
        if node.op_type in _ELEMENTWISE or node.op_type == "BiasSplitGelu":
            shapes = {self._graph.shape(name) for name in node.input if name}
            movement = "copies" if len(shapes) == 1 else "broadcasts"
        elif node.op_type in _REDUCTIONS:
            movement = "sums"
        elif node.op_type in _COPIES or node.op_type == "Transpose":
            movement = "moves"
        elif node.op_type in _SELECTIONS:
            movement, read = "moves", written
        else:
            raise UnknownOperatorError(
                f"{node.domain or 'ai.onnx'}.{node.op_type} {node.name} is not known: add it to {__name__}"
            )
        return Kernel(node.name or node.output[0], kind, read, written, movement=movement)

    def _kind(self, node: onnx.NodeProto) -> Kind:
        if self._is_norm(node):
            return "group norm"
        if (
            any(self._graph.dtype(name) != "float16" for name in node.output if name)
            or node.op_type == "Cast"
        ):
            return "step"
        match node.op_type:
            case "LayerNormalization" | "SkipLayerNormalization":
                return "layer norm"
            case "Transpose":
                return "transpose"
            case "Add" if any(name in self._constant for name in node.input):
                return "bias"
            case "Gelu" | "QuickGelu" | "BiasGelu" | "BiasSplitGelu" | "Mul" | "Sigmoid":
                return "activation"
            case "Split" if any(
                reader.op_type == "Gelu" for name in node.output for reader in self._readers[name]
            ):
                return "activation"
            case "Add" | "Sub" | "Div":
                return "residual"
            case _:
                return "copy"

    def _is_norm(self, node: onnx.NodeProto) -> bool:
        if node.name.startswith(NORM):
            return True
        source = self._producers.get(node.input[0])
        return node.op_type == "QuickGelu" and source is not None and source.name.startswith(NORM)

    def _convolution(self, node: onnx.NodeProto) -> list[Kernel]:
        x, weight, label = node.input[0], node.input[1], node.name or node.output[0]
        batch, channels, *sides = self._graph.shape(node.output[0])
        product = Product(1, batch * prod(sides), channels, prod(self._graph.shape(weight)[1:]))
        into, out, weights = self._bytes(x), self._bytes(node.output[0]), self._bytes(weight)
        main = self._convolving(node, product, into, out, weights)
        if self._provider.prefer_nhwc:
            # Transposes in the graph; the weights are reordered when it is opened.
            before = [Kernel(label, "transpose", into, into, movement="moves")]
            after = [Kernel(label, "transpose", out, out, movement="moves", optional=True)]
        else:
            before = [
                Kernel(label, "layout conversion", into, into, movement="moves"),
                Kernel(label, "layout conversion", 0, weights, weights, movement="moves"),
            ]
            after = [Kernel(label, "layout conversion", out, out, movement="moves", optional=True)]
            if self._provider.fuse_conv_bias and len(node.input) > 2:
                # cuDNN's fused plans in NCHW add a third tensor, for which ONNX Runtime passes the result.
                main = self._convolving(node, product, into + out, out, weights)
        return [*before, main, *after, *self._bias(node, out)]

    def _channels_last(self, node: onnx.NodeProto) -> list[Kernel]:
        out = self._bytes(node.output[0])
        *pixels, channels = self._graph.shape(node.output[0])
        weight = node.input[1]
        product = Product(1, prod(pixels), channels, prod(self._graph.shape(weight)[1:]))
        main = self._convolving(node, product, self._bytes(node.input[0]), out, self._bytes(weight))
        return [main, *self._bias(node, out)]

    def _convolving(
        self, node: onnx.NodeProto, product: Product, read: int, out: int, weights: int
    ) -> Kernel:
        engine: Engine = "conv" if self._provider.tensor_cores else "core_conv"
        operations = 2 * product.rows * product.columns * product.depth
        return Kernel(
            node.name or node.output[0], "convolution", read, out, weights, operations, engine, "copies", product
        )  # fmt: skip

    def _bias(self, node: onnx.NodeProto, out: int) -> list[Kernel]:
        if len(node.input) < 3 or not node.input[2] or self._provider.fuse_conv_bias:
            return []
        return [Kernel(node.name or node.output[0], "convolution bias", out, out, movement="broadcasts")]

    def _product(self, node: onnx.NodeProto) -> Kernel:
        a = self._graph.shape(node.input[0])
        out = self._graph.shape(node.output[0])
        transposed = {a.name for a in node.attribute if a.name in ("transA", "transB") and a.i}
        depth = a[0] if "transA" in transposed else a[-1]
        operations = 2 * prod(out) * depth
        weighted = node.input[1] in self._constant
        # A product with one weight has one group: samples are rows.
        groups = 1 if weighted or len(out) < 3 else prod(out[:-2])
        rows = prod(out[:-1]) // groups
        read, written = self._bytes(node.input[0]), self._bytes(node.output[0])
        launches = 1
        if node.op_type == "Gemm" and len(node.input) > 2:
            launches, read, written = 2, read + written, 2 * written
        half = self._graph.dtype(node.output[0]) == "float16"
        return Kernel(
            node.name or node.output[0], "product" if half else "step",
            read + (0 if weighted else self._bytes(node.input[1])), written,
            self._bytes(node.input[1]) if weighted else 0, operations,
            "gemm" if half else "cores", "copies", Product(groups, rows, out[-1], depth), launches,
        )  # fmt: skip

    def _attention(self, node: onnx.NodeProto) -> list[Kernel]:
        label = node.name or node.output[0]
        query, key = (self._graph.shape(name) for name in node.input[:2])
        into, out = self._bytes(node.input[0]), self._bytes(node.output[0])
        read = sum(self._bytes(name) for name in node.input[:3])
        product = _attention_shape(node, query, key, self._graph.shape(node.output[0]))
        if self._graph.dtype(node.output[0]) != "float16":
            raise UnknownOperatorError(
                f"Attention {label} of {self._graph.dtype(node.output[0])} is not known"
            )
        operations = 2 * product.groups * product.rows * product.depth * product.columns
        kernel = Kernel(
            label, "attention", read, out, 0, operations, self._provider.attention, "copies", product
        )
        if len(query) == 3:
            return [kernel]
        return [
            Kernel(label, "transpose", into, into, movement="moves"),
            kernel,
            Kernel(label, "transpose", out, out, movement="moves"),
        ]

    def _bytes(self, name: str) -> int:
        return prod(self._graph.shape(name)) * self._graph.element_bytes(name)

    def _on_host(self, name: str) -> bool:
        """Shapes and other numbers that kernels take as arguments."""
        return name in self._graph.known_values and self._graph.dtype(name) == "int64"


def _attention_shape(node: onnx.NodeProto, query: Shape, key: Shape, out: Shape) -> Product:
    """Groups are samples times heads; columns the widths of a query and a value together."""
    if len(query) == 4:
        return Product(query[0] * query[1], query[2], query[3] + out[3], key[2])
    heads = next(a.i for a in node.attribute if a.name == "q_num_heads")
    return Product(query[0] * heads, query[1], (query[2] + out[2]) // heads, key[1])
