"""Derive the graph of a VAE half (encoder or decoder) for the tiles of a large image from its exported graph.

Two operations in a VAE depend on the whole image: the statistics of group normalisations, and the attention in the
middle block. The tiled graph takes statistics as an input, and its attention also attends to context tokens that
represent the rest of the image. The host computes both from outputs of the tiles.

The graph is derived from the exported one and uses its weights: exporting another would take longer than the rest of
the autoencoder, and store the weights twice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from sd2rt.engines.bundle.files import describe
from sd2rt.engines.bundle.part_interface import Interface
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.errors import BuildError
from sd2rt.engines.weights.graph_archive import TILED

_QUERY_BLOCKS = 8
"""Blocks into which a tile's queries are split, to bound the memory of attention scores: with seven times as many
context tokens as the tile has, a block's scores take no more memory than the tile's attention to itself. The sides of
tiles are multiples of eight."""
_BLOCK = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.")


def tiled_part(half: Part, bundle: Path, interface: Interface, norms: Sequence[str], levels: int) -> Part:
    """Write ``tiled.onnx`` beside the graph of ``half``, an encoder or decoder; return its manifest entry.

    Raises:
        BuildError: the graph is not of SD2's autoencoder.
    """
    source = bundle / half.onnx
    target = source.with_name(TILED)
    write_tiled_graph(source, target, interface, norms, levels)
    path = target.relative_to(bundle).as_posix()
    # In the same folder: ONNX Runtime opens no weights outside the graph's folder.
    shared = [file for file in half.files if file.path == half.initializers or file.path.endswith(".data")]
    return Part(
        precision=half.precision,
        onnx=path,
        onnxruntime=path,
        files=(*shared, describe(bundle, path)),
        opset=half.opset,
        inputs=interface.inputs,
        outputs=interface.outputs,
        initializers=half.initializers,
        parameters=half.parameters,
    )


def write_tiled_graph(
    source: Path, target: Path, interface: Interface, norms: Sequence[str], levels: int
) -> None:
    """Rewrite ``source``, the graph of a VAE half, for tiles, and write it to ``target`` in the same folder.

    Shapes: h x w the tile's latents, N norms, G groups, C channels of the attention, M context tokens.

    Args:
        interface: the tensors of the new graph. Inputs: the half's (batch size 1), ``stats`` [N, G, 2]
            (means and variances to use), ``given`` [1] (1 to use them, 0 to use the tile's own), ``weights`` [h, w]
            (of the tile's latents in averages over the image), ``context`` [M, C] (tokens that represent the whole
            image) and ``context_bias`` [M] (log of the number of positions outside the tile that each represents).
            Outputs: the half's, ``own`` [N, G, 2] (the tile's statistics) and ``tokens`` [C, h, w].
        norms: names of the group normalisations, in the order of their statistics.
        levels: number of resolutions of the autoencoder.

    Raises:
        BuildError: the graph is not of SD2's autoencoder.
    """
    model = ir.load(source)
    surgery = _Surgery(model.graph, interface)
    statistics = {}
    for node in list(model.graph):
        if node.op_type == "GroupNormalization":
            name = str(node.inputs[1] and node.inputs[1].name).removesuffix(".weight")
            if name not in norms:
                raise BuildError(
                    f"{source}: the graph has a group normalisation {name} that its network lacks"
                )
            statistics[name] = surgery.norm(node, norms.index(name), _doublings(name, levels))
    if set(statistics) != set(norms):
        raise BuildError(
            f"{source}: the graph has {len(statistics)} group normalisations, its network {len(norms)}"
        )
    tokens = surgery.attention()
    surgery.finish([statistics[name] for name in norms], tokens)
    RemoveUnusedNodesPass()(model)
    ir.save(model, target)


def _doublings(name: str, levels: int) -> int:
    """Number of doublings of the size from the latents to a norm's input."""
    if ".mid_block." in name:
        return 0
    block = _BLOCK.match(name)
    if name.startswith("decoder."):
        return int(block[2]) if block else levels - 1
    return levels - 1 - int(block[2]) if block else 0


class _Surgery:
    """Edits of one graph. New nodes are inserted before the node that is being replaced."""

    def __init__(self, graph: ir.Graph, interface: Interface) -> None:
        self._graph = graph
        self._interface = interface
        self._anchor = self._start = next(iter(graph))
        self._shares: dict[int, ir.Value] = {}
        self._inputs: dict[str, ir.Value] = {}
        for tensor in interface.inputs[1:]:
            shape = ir.Shape(list(tensor.shape))
            dtype = ir.DataType.from_numpy(np.dtype(tensor.dtype))
            value = ir.Value(name=tensor.name, shape=shape, type=ir.TensorType(dtype))
            self._inputs[tensor.name] = value
            graph.inputs.append(value)
        self._half = self._inputs["context"].dtype == ir.DataType.FLOAT16
        self._total = self._make("ReduceSum", self._inputs["weights"], keepdims=0)
        self._own_share = self._make("Sub", self._constant(np.float32(1)), self._inputs["given"])

    def norm(self, node: ir.Node, index: int, doublings: int) -> ir.Value:
        """Replace a group normalisation, and return the tile's statistics [1, G, 2].

        In float32 throughout. The variance is computed about the mean, never as a difference of squares.
        """
        self._anchor = node
        x, scale, bias = node.inputs
        assert x is not None
        assert scale is not None
        assert bias is not None
        assert scale.shape is not None
        groups = node.attributes["num_groups"].as_int()
        size = int(scale.shape[0]) // groups
        shares = self._share_of(doublings)
        flat = self._make("Reshape", self._f32(x), self._constant(np.array([groups, size, -1])))
        mean = self._mean(self._make("MatMul", flat, shares))  # [G, 1]
        centred = self._make("Sub", flat, self._unsqueeze(mean, 2))
        square = self._make("Mul", centred, centred)
        variance = self._mean(self._make("MatMul", square, shares))
        own = self._unsqueeze(self._make("Concat", mean, variance, axis=1), 0)  # [1, G, 2]
        given = self._make("Gather", self._inputs["stats"], self._constant(np.array([index])), axis=0)
        used = self._make(
            "Add",
            self._make("Mul", given, self._inputs["given"]),
            self._make("Mul", own, self._own_share),
        )
        columns = [self._make("Gather", used, self._constant(np.array([i])), axis=2) for i in (0, 1)]
        used_mean, used_variance = (
            self._make("Reshape", column, self._constant(np.array([groups, 1, 1]))) for column in columns
        )
        epsilon = self._constant(np.float32(node.attributes["epsilon"].as_float()))
        std = self._make("Sqrt", self._make("Add", used_variance, epsilon))
        shape = self._constant(np.array([groups, size, 1]))
        gain = self._make("Div", self._make("Reshape", self._f32(scale), shape), std)
        moved = self._make("Sub", self._unsqueeze(mean, 2), used_mean)
        offset = self._make("Mul", moved, gain)
        offset = self._make("Add", offset, self._make("Reshape", self._f32(bias), shape))
        normal = self._make("Add", self._make("Mul", centred, gain), offset)
        back = self._make("Reshape", normal, self._make("Shape", x))
        result = self._make("CastLike", back, x)
        ir.convenience.replace_all_uses_with(node.outputs[0], result)
        self._graph.remove(node, safe=True)
        return own

    def attention(self) -> ir.Value:
        """Extend the attention to the context tokens, and return its input's tokens [C, h, w].

        A token that represents n positions gets log(n) added to its scores, which weighs it like n equal tokens. The
        bias is an extra channel of queries (ones) and keys: a mask would have to be as large as the scores.
        """
        query, key, value, out = (self._projection(name) for name in ("to_q", "to_k", "to_v", "to_out.0"))
        self._anchor = query
        tokens = query.inputs[0]
        assert tokens is not None  # [1, hw, C]
        seen = self._make("Concat", tokens, self._unsqueeze(self._inputs["context"], 0), axis=1)
        for node in (key, value):
            node.replace_input_with(0, seen)
            # Longer by the context now: clear the old shapes, which readers would trust.
            for output in (node.outputs[0], self._biased(node)):
                output.shape = None
        # After the projections' biases, and before the nodes that read them.
        self._anchor = out
        width = int(self._interface.outputs[2].shape[0])
        scale = width**-0.5
        q, k, v = (self._biased(node) for node in (query, key, value))
        ends = self._make("Slice", tokens, *(self._constant(np.array([i])) for i in (0, 1, 2)))
        none = self._make("Mul", ends, self._like(0, tokens))  # [1, hw, 1]
        ones = self._make("Add", none, self._like(1, tokens))
        bias = self._make("Div", self._inputs["context_bias"], self._constant(np.float32(scale)))
        bias = self._make("Reshape", bias, self._constant(np.array([1, -1, 1])))
        bias = self._make("CastLike", bias, tokens)
        q = self._make("Concat", q, ones, axis=2)
        k = self._make("Concat", k, self._make("Concat", none, bias, axis=1), axis=2)
        q = self._make("Reshape", q, self._constant(np.array([_QUERY_BLOCKS, 1, -1, width + 1])))
        k, v = self._unsqueeze(k, 1), self._unsqueeze(v, 1)
        split = ir.node("Split", [q], {"axis": 0, "num_outputs": _QUERY_BLOCKS}, num_outputs=_QUERY_BLOCKS)
        self._graph.insert_before(self._anchor, split)
        attend = self._attend if self._half else self._attend_in_steps
        joined = self._make("Concat", *attend(split.outputs, k, v, scale), axis=2)
        joined = self._make("Squeeze", joined, self._constant(np.array([1])))  # [1, hw, C], or a channel more
        first = (self._constant(np.array([i])) for i in (0, width, 2))
        out.replace_input_with(0, self._make("Slice", joined, *first) if self._half else joined)
        size = self._make("Concat", self._constant(np.array([width])), self._shape_of_tile(), axis=0)
        swapped = self._make("Transpose", self._f32(tokens), perm=[0, 2, 1])
        return self._make("Reshape", swapped, size)

    def _attend(self, queries: Sequence[ir.Value], k: ir.Value, v: ir.Value, scale: float) -> list[ir.Value]:
        # TensorRT's attention requires queries, keys and values of the same width.
        v = self._make("Pad", v, self._constant(np.array([0, 0, 0, 0, 0, 0, 0, 1])))
        return [self._make("Attention", query, k, v, scale=scale) for query in queries]

    def _attend_in_steps(
        self, queries: Sequence[ir.Value], k: ir.Value, v: ir.Value, scale: float
    ) -> list[ir.Value]:
        """Attention as matrix product, softmax and matrix product: TensorRT for RTX 1.7 crashes on several float32
        Attention operators that share keys. Nothing is lost: no backend has a fused float32 kernel."""
        turned = self._make("Transpose", k, perm=[0, 1, 3, 2])
        results = []
        for query in queries:
            scores = self._make("Mul", self._make("MatMul", query, turned), self._constant(np.float32(scale)))
            results.append(self._make("MatMul", self._make("Softmax", scores, axis=-1), v))
        return results

    def finish(self, statistics: list[ir.Value], tokens: ir.Value) -> None:
        """Add the tile's statistics and tokens as outputs, under the interface's names."""
        self._graph.outputs[0].name = self._interface.outputs[0].name
        joined = ir.node("Concat", list(statistics), {"axis": 0})
        copied = ir.node("Identity", [tokens])
        self._graph.extend([joined, copied])
        for tensor, node in zip(self._interface.outputs[1:], (joined, copied), strict=True):
            value = node.outputs[0]
            value.name, value.shape = tensor.name, ir.Shape(list(tensor.shape))
            value.type = ir.TensorType(ir.DataType.FLOAT)
            self._graph.outputs.append(value)

    def _share_of(self, doublings: int) -> ir.Value:
        """Weights [HW, 1] of an average over the tile at 2**doublings times the size of its latents."""
        if doublings not in self._shares:
            factor = 2**doublings
            # At the start of the graph, so that every norm of this size can use it.
            anchor, self._anchor = self._anchor, self._start
            part = self._make("Div", self._inputs["weights"], self._total)
            spread = self._make("Unsqueeze", part, self._constant(np.array([0, 1])))
            if factor > 1:
                scales = self._constant(np.array([1, 1, factor, factor], np.float32))
                spread = self._make(
                    "Resize",
                    spread,
                    None,
                    scales,
                    mode="nearest",
                    coordinate_transformation_mode="asymmetric",
                    nearest_mode="floor",
                )
                spread = self._make("Div", spread, self._constant(np.float32(factor**2)))
            self._shares[doublings] = self._make("Reshape", spread, self._constant(np.array([-1, 1])))
            self._anchor = anchor
        return self._shares[doublings]

    def _shape_of_tile(self) -> ir.Value:
        return self._make("Shape", self._inputs["weights"])

    def _projection(self, name: str) -> ir.Node:
        nodes = [
            node
            for node in self._graph
            if node.op_type == "MatMul"
            and f".attentions.0.{name}.weight" in str(node.inputs[1] and node.inputs[1].name)
        ]
        if len(nodes) != 1:
            raise BuildError(
                f"the autoencoder is not SD2's: its attention has {len(nodes)} projections {name}, expected one"
            )
        return nodes[0]

    def _biased(self, projection: ir.Node) -> ir.Value:
        (use,) = projection.outputs[0].uses()
        return use.node.outputs[0]

    def _mean(self, value: ir.Value) -> ir.Value:
        """Mean over a group's channels: [G, size, 1] to [G, 1]."""
        return self._make("ReduceMean", value, self._constant(np.array([1])), keepdims=0)

    def _unsqueeze(self, value: ir.Value, axis: int) -> ir.Value:
        return self._make("Unsqueeze", value, self._constant(np.array([axis])))

    def _f32(self, value: ir.Value) -> ir.Value:
        return self._make("Cast", value, to=ir.DataType.FLOAT)

    def _like(self, number: float, value: ir.Value) -> ir.Value:
        return self._make("CastLike", self._constant(np.float32(number)), value)

    def _make(self, operator: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        node = ir.node(operator, list(inputs), attributes or None)
        self._graph.insert_before(self._anchor, node)
        return node.outputs[0]

    def _constant(self, array: Any) -> ir.Value:
        """A constant of the graph, created on first use."""
        array = np.asarray(array)
        name = f"tiled.{array.dtype}.{'x'.join(map(str, array.reshape(-1)))}.{array.ndim}"
        value = self._graph.initializers.get(name)
        if value is None:
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            self._graph.register_initializer(value)
        return value
