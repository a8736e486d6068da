"""Replay, without a GPU, how ONNX Runtime with the CUDA provider places a graph's nodes.

Nodes without a CUDA kernel run on the CPU, and so do nodes that only compute on shapes (``GetCpuPreferredNodes``).
Tensors that are needed on the other side are copied. A graph with such copies cannot be captured as a CUDA graph.
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
WITHOUT_KERNEL = {"InstanceNormalization", "MaxPool"}
"""Operators of exported graphs that have no CUDA kernel at opset 23 in onnxruntime-gpu 1.31.1. Observed by opening
every graph with that package, on a CUDA runtime whose calls do nothing."""
_SMALL = 100
_NARROW = {
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.FLOAT8E4M3FN,
    onnx.TensorProto.FLOAT8E5M2,
}


def optimised(path: Path, target: Path) -> onnx.ModelProto:
    """The graph as it is when nodes are placed: after the optimisations that do not depend on a provider."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.load(target, load_external_data=False)


def memory_copies(model: onnx.ModelProto) -> list[str]:
    """The tensors that would be copied between host and GPU memory within a graph."""
    graph = model.graph
    cpu_nodes, on_cpu = _preferred(graph)
    for index in _without_kernel(graph):
        cpu_nodes.add(index)
        on_cpu.update(graph.node[index].output)
    # Inputs and initializers are available on either side.
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
    # One copy serves all consumers.
    return list(dict.fromkeys(copies))


def cpu_operators(model: onnx.ModelProto) -> dict[str, set[int]]:
    """The operators that run on the CPU, and their outputs' types."""
    graph = model.graph
    types = {item.name: item.type.tensor_type.elem_type for item in (*graph.value_info, *graph.output)}
    operators: defaultdict[str, set[int]] = defaultdict(set)
    for index in _preferred(graph)[0] | _without_kernel(graph):
        node = graph.node[index]
        operators[node.op_type] |= {types[name] for name in node.output if name in types}
    return operators


def _without_kernel(graph: onnx.GraphProto) -> set[int]:
    return {index for index, node in enumerate(graph.node) if node.op_type in WITHOUT_KERNEL}


def _preferred(graph: onnx.GraphProto) -> tuple[set[int], set[str]]:
    """The nodes that the provider leaves to the CPU, and the tensors in host memory."""
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
        if node.op_type in WITHOUT_KERNEL:
            continue
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
