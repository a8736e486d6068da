"""Predict, without a GPU, which nodes ONNX Runtime's CUDA provider would leave to the CPU.

Nodes that compute only on outputs of Shape and the like run on the CPU (``GetCpuPreferredNodes``). A tensor that the
other side needs is copied, and a graph with such a copy cannot be captured as a CUDA graph.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

OUTPUTS_ON_CPU = {"Shape", "Size"}
"""Operators with CUDA kernels that write their outputs to host memory."""
INPUTS_ON_CPU: dict[str, set[int]] = {
    "Clip": {1, 2},
    "ConstantOfShape": {0},
    "CumSum": {1},
    "Expand": {1},
    "Pad": {1, 2},
    "Range": {0, 1, 2},
    "Resize": {1, 2, 3},
    "Reshape": {1},
    "Slice": {1, 2, 3, 4},
    "Split": {1},
    "Squeeze": {1},
    "Tile": {1},
    "TopK": {1},
    "Unsqueeze": {1},
    **{f"Reduce{name}": {1} for name in ("L1", "L2", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")},
}
"""Indices of inputs that CUDA kernels read from host memory."""
_SMALL = 100
_NARROW = {
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.FLOAT8E4M3FN,
    onnx.TensorProto.FLOAT8E5M2,
}


def optimised(path: Path, target: Path) -> onnx.ModelProto:
    """A graph as providers see it: after the optimisations that are independent of providers."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.load(target, load_external_data=False)


def memory_copies(model: onnx.ModelProto) -> list[str]:
    """Names of tensors that would be copied between host and GPU in the middle of a graph."""
    graph = model.graph
    cpu_nodes, on_cpu = _preferred(graph)
    # Inputs and initialisers are available on both sides.
    outside = {item.name for item in (*graph.initializer, *graph.input)}
    copies = []
    for index, node in enumerate(graph.node):
        for place, name in enumerate(node.input):
            external = name in outside
            on_host = index in cpu_nodes or place in INPUTS_ON_CPU.get(node.op_type, ())
            if name and name not in on_cpu and not external and on_host:
                copies.append(name)
            if name in on_cpu and not on_host and node.op_type not in OUTPUTS_ON_CPU:
                copies.append(name)
    return copies


def _preferred(graph: onnx.GraphProto) -> tuple[set[int], set[str]]:
    """Indices of the nodes that run on the CPU, and names of the tensors in host memory."""
    kinds = {item.name: item.type.tensor_type.elem_type for item in (*graph.input, *graph.value_info)}
    kinds |= {item.name: item.data_type for item in graph.initializer}
    small = {item.name for item in graph.initializer if np.prod(item.dims, dtype=int) <= _SMALL}
    inputs = {item.name for item in graph.input}
    consumers: defaultdict[str, list[int]] = defaultdict(list)
    for index, node in enumerate(graph.node):
        for name in node.input:
            consumers[name].append(index)
    on_cpu = {name for node in graph.node if node.op_type in OUTPUTS_ON_CPU for name in node.output}
    candidates = sorted({index for name in on_cpu for index in consumers[name]})
    chosen: set[int] = set()
    seen: set[int] = set()
    while candidates:
        index = candidates.pop(0)
        if index in seen:
            continue
        seen.add(index)
        node = graph.node[index]
        stays = all(
            kinds.get(name) not in _NARROW
            and (
                name in small
                or name in inputs
                or (name in on_cpu and place not in INPUTS_ON_CPU.get(node.op_type, ()))
            )
            for place, name in enumerate(node.input)
            if name
        )
        if stays:
            chosen.add(index)
            on_cpu.update(node.output)
            # In the graph's order: earlier nodes decide about later ones.
            candidates = sorted({*candidates, *(i for name in node.output for i in consumers[name])})
    return chosen, on_cpu
