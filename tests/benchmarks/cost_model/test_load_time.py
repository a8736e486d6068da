"""Graphs as they are loaded, against ONNX Runtime's own optimised models."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from benchmarks.cost_model.full_graph import input_shapes
from benchmarks.cost_model.load_time import NORM, computed_while_loading, rewritten
from benchmarks.cost_model.predict import form_of
from benchmarks.cost_model.shapes import Graph
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.export.graphs.cuda_forms.forms import DEFAULT_FORMS

DIMS = {"B": 1, "R": 2, "P": 1, "L": 77, "h": 8, "w": 8}


@pytest.mark.parametrize("forms", [(), DEFAULT_FORMS], ids=["plain", "default forms"])
def test_the_operators_are_those_of_onnxruntime(
    small_bundle: Path, tmp_path: Path, forms: tuple[str, ...]
) -> None:
    plain = small_bundle / "denoiser" / "model.onnx"
    model = form_of(plain, forms)
    (tmp_path / "model.onnx.data").hardlink_to(plain.with_name("model.onnx.data"))
    onnx.save(model, tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx", load_external_data=False)

    ours = rewritten(model)
    folded = {tensor.name for tensor in ours.graph.initializer}
    counted: Counter[str] = Counter()
    for node in ours.graph.node:
        if not node.name.startswith(NORM) and node.input and folded.issuperset(node.input):
            folded.update(node.output)
        elif node.op_type != "Constant":
            counted[node.op_type] += 1
    expected = Counter(node.op_type for node in optimised.graph.node)
    # Two slices of the time embedding become one split, which launches one kernel less.
    assert counted.pop("Slice") == 2
    expected["Split"] -= 1
    assert counted == expected
    assert counted["QuickGelu"] > 20


def test_weights_of_norms_are_cast_in_every_call(small_half_bundle: Path) -> None:
    path = small_half_bundle / "denoiser" / "model.onnx"
    model = form_of(path, ())
    shapes = input_shapes(model, open_bundle(small_half_bundle).manifest.parts["denoiser"], DIMS)
    graph = Graph(rewritten(model), shapes)
    constant = computed_while_loading(graph)
    casts = [node for node in graph.nodes if node.name.startswith(NORM) and node.op_type == "Cast"]
    norms = sum(node.op_type == "GroupNormalization" for node in model.graph.node)
    assert len(casts) == 5 * norms
    assert not any(node.output[0] in constant for node in casts)
    # Merged weights are computed once.
    merged = form_of(path, DEFAULT_FORMS)
    graph = Graph(rewritten(merged), shapes)
    joined = [
        node.output[0]
        for node in graph.nodes
        if node.op_type == "Concat" and set(node.input) <= {*graph.weights}
    ]
    assert len(joined) > 2
    assert set(joined) <= computed_while_loading(graph)
