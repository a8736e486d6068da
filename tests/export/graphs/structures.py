"""Record the structure of exported graphs: ``python -m tests.export.graphs.structures`` updates it.

A graph's structure is its operators, attributes, names and shapes, and constants of a few elements. Weights and large
constants are left out: their last bits differ by processor.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from sd2rt.engines.bundle.schema import Precision
from sd2rt.export.build import build
from sd2rt.export.checkpoints.checkpoint import open_checkpoint
from sd2rt.export.checkpoints.tiny_configs import SMALLS
from sd2rt.export.graphs.cuda_forms.forms import FORMS_REVISION
from sd2rt.export.graphs.graph_cache import GRAPH_REVISION
from sd2rt.export.testing.random_weights import random_checkpoint

RECORD = Path(__file__).with_name("structures.json")

_FEW = 8
"""Constants of up to this many elements are part of the structure."""


def structures(bundle: Path) -> dict[str, str]:
    """SHA-256 of the structure of each graph in a bundle, by path."""
    return {
        path.relative_to(bundle).as_posix(): hashlib.sha256("\n".join(_lines(path)).encode()).hexdigest()
        for path in sorted(bundle.glob("*/*.onnx"))
    }


def _lines(path: Path) -> Iterator[str]:
    graph = onnx.load(path, load_external_data=False).graph
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        shape = [side.dim_param or side.dim_value for side in kind.shape.dim]
        yield f"{value.name} {kind.elem_type} {shape}"
    for tensor in graph.initializer:
        yield f"{tensor.name} {_constant(tensor)}"
    for node in graph.node:
        attributes = sorted(f"{item.name}={_attribute(item)}" for item in node.attribute)
        yield f"{node.op_type} {list(node.input)} {list(node.output)} {attributes}"


def _constant(tensor: onnx.TensorProto) -> str:
    few = int(np.prod(tensor.dims)) <= _FEW and tensor.data_location != onnx.TensorProto.EXTERNAL
    values = [_number(item) for item in numpy_helper.to_array(tensor).ravel().tolist()] if few else "..."
    return f"{tensor.data_type} {list(tensor.dims)} {values}"


def _attribute(attribute: onnx.AttributeProto) -> str:
    value: Any = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _constant(value)
    return str([_number(item) for item in value] if isinstance(value, list) else _number(value))


def _number(value: Any) -> str:
    # Constants are folded by the processor: their last bits vary.
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def record(bundles: dict[str, Path]) -> dict[str, Any]:
    """The record that a test compares, by the kind and precision of bundles."""
    return {
        "revision": GRAPH_REVISION,
        "forms_revision": FORMS_REVISION,
        "graphs": {name: structures(path) for name, path in bundles.items()},
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        bundles = {}
        for kind, configs in SMALLS.items():
            folder = "sd-turbo" if kind == "turbo" else f"small-{kind}"
            checkpoint = open_checkpoint(
                str(random_checkpoint(Path(scratch) / folder, configs=configs, seed=1))
            )
            precisions: tuple[Precision, ...] = ("fp32", "fp16") if kind == "base" else ("fp32",)
            for precision in precisions:
                target = Path(scratch) / "bundles" / f"{kind}-{precision}"
                build(checkpoint, target, precision=precision)
                bundles[target.name] = target
        RECORD.write_text(json.dumps(record(bundles), indent=1) + "\n")


if __name__ == "__main__":
    main()
