"""Measure the memory of ONNX Runtime sessions of one graph, by the way that they are given its weights.

    python -m benchmarks.session_memory WAY

Three sessions of a graph of products, with 256 MB of weights, on the CPU: the first for any batch, the others for one
size each. Prints one line of JSON: megabytes that the process grew by with each session. The buffer that sessions
share in some ways is counted apart.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

WAYS = ("files", "external", "external-unpacked", "added", "added-unpacked")
"""``files``: each session reads the data file. ``external``: ``add_external_initializers`` from one buffer.
``added``: ``add_initializer`` from one buffer. ``unpacked``: without weights in the layout of the CPU's kernels,
which a GPU's sessions have not either."""
_SIDE = 2048


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.session_memory", description=__doc__.splitlines()[0]
    )
    parser.add_argument("way", choices=WAYS)
    parser.add_argument(
        "--products", type=int, default=16, help="products of the graph, of 16 MB of weights each"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(options.way, Path(scratch), options.products)))


def measure(way: str, folder: Path, products: int) -> dict[str, Any]:
    """Open three sessions, and run each once."""
    data = _write(folder, products)
    values: dict[str, Any] = {}
    before_buffer = _resident_bytes()
    if way != "files":
        weights = np.fromfile(data, np.float32).reshape(products, _SIDE, _SIDE)
        values = {
            f"w{index}": onnxruntime.OrtValue.ortvalue_from_numpy(weight)
            for index, weight in enumerate(weights)
        }
    before = _resident_bytes()
    sessions: list[onnxruntime.InferenceSession] = []
    grown: list[int] = []
    for number in range(3):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if number:
            options.add_free_dimension_override_by_name("B", number)
        if way.endswith("unpacked"):
            options.add_session_config_entry("session.disable_prepacking", "1")
        if way.startswith("external"):
            options.add_external_initializers(list(values), list(values.values()))
        elif way.startswith("added"):
            for name, value in values.items():
                options.add_initializer(name, value)
        session = onnxruntime.InferenceSession(
            folder / "products.onnx", options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        session.run(None, {"x": np.ones((max(number, 1), _SIDE), np.float32)})
        sessions.append(session)
        grown.append(_resident_bytes() - before - sum(grown))
    return {
        "way": way,
        "weights_bytes": data.stat().st_size,
        "buffer_bytes": before - before_buffer,
        "session_bytes": grown,
    }


def _write(folder: Path, products: int) -> Path:
    """Write the graph; returns the path of its data file."""
    random = np.random.default_rng(0)
    nodes, tensors, current = [], [], "x"
    data = folder / "products.data"
    with data.open("wb") as file:
        for index in range(products):
            weight = random.standard_normal((_SIDE, _SIDE)).astype(np.float32) / np.float32(np.sqrt(_SIDE))
            tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=weight.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", file.tell()), ("length", weight.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            file.write(weight.tobytes())
            tensors.append(tensor)
            nodes.append(helper.make_node("MatMul", [current, tensor.name], [f"y{index}"]))
            current = f"y{index}"
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", _SIDE])] for name in ("x", current)
    )
    graph = helper.make_graph(nodes, "products", inputs, outputs, tensors)
    opset = [helper.make_opsetid("", 23)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=11), folder / "products.onnx")
    return data


def _resident_bytes() -> int:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")
    )
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    main()
