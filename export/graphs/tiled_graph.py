"""An autoencoder's half for the tiles of a large image: its own graph, told what it cannot see of the whole.

Two things in an encoder or decoder look at the whole image: the statistics of group normalisations, and the attention
in the middle. In the graph made here the statistics can be given, and the attention sees, beside the tile's own
tokens, tokens that stand for what lies elsewhere. Both come from the tiles themselves, by the host, which asks every
tile for its share of them.

The graph is made from the exported one and on its weights: exporting it anew would take longer than the rest of the
autoencoder, and store the weights twice.
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
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.errors import BuildError
from sd2rt.export.graphs.interface import Interface

_QUERY_BLOCKS = 8
"""Parts that a tile's queries are worked on in: what holds all scores at once holds no more of them than for a tile
alone, even where seven times as many tokens are from elsewhere. The sides of tiles are multiples of eight."""
_BLOCK = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.")


def tiled_part(half: Part, bundle: Path, interface: Interface, norms: Sequence[str], levels: int) -> Part:
    """Write ``tiled.onnx`` beside the graph of ``half``, an encoder or decoder, and describe it as a part.

    Raises:
        BuildError: the graph is not that of SD2's autoencoder.
    """
    source = bundle / half.onnx
    target = source.with_name("tiled.onnx")
    write_tiled_graph(source, target, interface, norms, levels)
    path = target.relative_to(bundle).as_posix()
    # ONNX Runtime opens no weights outside of a graph's own folder.
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
    """Write ``source``, an autoencoder's half, again as ``target``, beside it, for tiles.

    Shapes: h x w the tile's latents, N norms, G groups, C channels of the attention, M tokens of the whole image.

    Args:
        interface: the tensors that the graph is to have: what the half takes (one of a batch), ``stats`` [N, G, 2]
            (means and variances to use), ``given`` [1] (1 to use them, 0 to use the tile's own), ``weights`` [h, w]
            (of the tile's latents in averages over the image), ``context`` [M, C] (tokens that stand for the whole
            image) and ``context_bias`` [M] (logarithms of how many positions outside of the tile each stands for);
            then what the half makes, ``own`` [N, G, 2] (the tile's statistics) and ``tokens`` [C, h, w].
        norms: the names of the group normalisations, in the order of their statistics.
        levels: resolutions of the autoencoder.

    Raises:
        BuildError: the graph is not that of SD2's autoencoder.
    """
    model = ir.load(source)
    surgery = _Surgery(model.graph, interface)
    own = {}
    for node in list(model.graph):
        if node.op_type == "GroupNormalization":
            name = str(node.inputs[1] and node.inputs[1].name).removesuffix(".weight")
            if name not in norms:
                raise BuildError(f"{source}: it has a group normalisation {name} that its network has not")
            own[name] = surgery.norm(node, norms.index(name), _doublings(name, levels))
    if set(own) != set(norms):
        raise BuildError(f"{source}: it has {len(own)} group normalisations, its network {len(norms)}")
    tokens = surgery.attention()
    surgery.finish([own[name] for name in norms], tokens)
    RemoveUnusedNodesPass()(model)
    ir.save(model, target)


def _doublings(name: str, levels: int) -> int:
    """How often the size doubles from the latents to a norm's input."""
    if ".mid_block." in name:
        return 0
    block = _BLOCK.match(name)
    if name.startswith("decoder."):
        return int(block[2]) if block else levels - 1
    return levels - 1 - int(block[2]) if block else 0


class _Surgery:
    """Changes of one graph. New nodes go before the node that is being replaced."""

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
        """Replace a group normalisation; what is returned is the tile's own statistics [1, G, 2].

        In float32 throughout. The variance is about the mean, never a difference of squares.
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
        """Let the attention see the context; what is returned is its input's tokens [C, h, w].

        A token that stands for n positions has log(n) added to its scores, as n equal tokens would weigh. The
        addition is one more channel of queries (ones) and keys: a mask would have to be as large as the scores.
        """
        query, key, value, out = (self._projection(name) for name in ("to_q", "to_k", "to_v", "to_out.0"))
        self._anchor = query
        tokens = query.inputs[0]
        assert tokens is not None  # [1, hw, C]
        seen = self._make("Concat", tokens, self._unsqueeze(self._inputs["context"], 0), axis=1)
        for node in (key, value):
            node.replace_input_with(0, seen)
            # Longer by the context now; what is left of their old shapes would be believed.
            for made in (node.outputs[0], self._biased(node)):
                made.shape = None
        # After the projections' biases, and before what reads them.
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
        # TensorRT's attention takes queries, keys and values of one width alone.
        v = self._make("Pad", v, self._constant(np.array([0, 0, 0, 0, 0, 0, 0, 1])))
        return [self._make("Attention", query, k, v, scale=scale) for query in queries]

    def _attend_in_steps(
        self, queries: Sequence[ir.Value], k: ir.Value, v: ir.Value, scale: float
    ) -> list[ir.Value]:
        """The same of a product, a softmax and a product: TensorRT for RTX 1.7 crashes on several attentions in
        float32 that share their keys. Nothing is lost by it: no backend has a kernel for the whole in float32."""
        turned = self._make("Transpose", k, perm=[0, 1, 3, 2])
        found = []
        for query in queries:
            scores = self._make("Mul", self._make("MatMul", query, turned), self._constant(np.float32(scale)))
            found.append(self._make("MatMul", self._make("Softmax", scores, axis=-1), v))
        return found

    def finish(self, own: list[ir.Value], tokens: ir.Value) -> None:
        """Hand out the tile's statistics and tokens, under the interface's names."""
        self._graph.outputs[0].name = self._interface.outputs[0].name
        joined = ir.node("Concat", list(own), {"axis": 0})
        same = ir.node("Identity", [tokens])
        self._graph.extend([joined, same])
        for tensor, node in zip(self._interface.outputs[1:], (joined, same), strict=True):
            value = node.outputs[0]
            value.name, value.shape = tensor.name, ir.Shape(list(tensor.shape))
            value.type = ir.TensorType(ir.DataType.FLOAT)
            self._graph.outputs.append(value)

    def _share_of(self, doublings: int) -> ir.Value:
        """Each element's part in an average over the tile, 2**doublings times as large as its latents: [HW, 1]."""
        if doublings not in self._shares:
            factor = 2**doublings
            # Before all of the network: every norm of this size may use it.
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
        found = [
            node
            for node in self._graph
            if node.op_type == "MatMul"
            and f".attentions.0.{name}.weight" in str(node.inputs[1] and node.inputs[1].name)
        ]
        if len(found) != 1:
            raise BuildError(
                f"the autoencoder is not SD2's: its attention has {len(found)} projections {name}"
            )
        return found[0]

    def _biased(self, projection: ir.Node) -> ir.Value:
        (use,) = projection.outputs[0].uses()
        return use.node.outputs[0]

    def _mean(self, value: ir.Value) -> ir.Value:
        """Over a group's channels: [G, size, 1] to [G, 1]."""
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
        """An initialiser of the graph, made on first use."""
        array = np.asarray(array)
        name = f"tiled.{array.dtype}.{'x'.join(map(str, array.reshape(-1)))}.{array.ndim}"
        value = self._graph.initializers.get(name)
        if value is None:
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            self._graph.register_initializer(value)
        return value
