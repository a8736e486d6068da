"""No exported graph changes its structure under the same GRAPH_REVISION."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from sd2rt.engines.bundle.model_kinds import KINDS
from sd2rt.export.graphs.cuda_forms.forms import FORMS_REVISION
from sd2rt.export.graphs.graph_cache import GRAPH_REVISION

from .structures import RECORD, structures

BUNDLES = {
    **{f"{kind}-fp32": "small_bundle" if kind == "base" else f"small_{kind}_bundle" for kind in KINDS},
    "base-fp16": "small_half_bundle",
}


@pytest.mark.usefixtures("pinned_exporters")
@pytest.mark.parametrize("name", BUNDLES)
def test_graphs_are_as_recorded(name: str, request: pytest.FixtureRequest) -> None:
    recorded = json.loads(RECORD.read_text())
    revisions = (recorded["revision"], recorded["forms_revision"])
    assert revisions == (GRAPH_REVISION, FORMS_REVISION), "run 'python -m tests.export.graphs.structures'"
    assert structures(Path(request.getfixturevalue(BUNDLES[name]))) == recorded["graphs"][name], (
        "exported graphs changed: increment GRAPH_REVISION, so that older cached graphs are not used, "
        "or FORMS_REVISION if only onnxruntime-cuda.onnx changed, "
        "then run 'python -m tests.export.graphs.structures' and 'python -m benchmarks.demo.graphs'"
    )


def test_a_structure_changes_with_what_a_graph_computes(small_bundle: Path, tmp_path: Path) -> None:
    source = small_bundle / "denoiser" / "model.onnx"
    original = structures(small_bundle)["denoiser/model.onnx"]

    def changed(alter: str) -> str:
        model = onnx.load(source, load_external_data=False)
        norm = next(node for node in model.graph.node if node.op_type == "GroupNormalization")
        if alter == "epsilon":
            next(item for item in norm.attribute if item.name == "epsilon").f *= 10
        elif alter == "order":
            norm.input[1], norm.input[2] = norm.input[2], norm.input[1]
        elif alter == "operator":
            norm.op_type = "InstanceNormalization"
        else:
            model.doc_string = "a note"
        (tmp_path / "denoiser").mkdir(exist_ok=True)
        onnx.save(model, tmp_path / "denoiser" / "model.onnx")
        return structures(tmp_path)["denoiser/model.onnx"]

    assert changed("note") == original
    assert len({original, changed("epsilon"), changed("order"), changed("operator")}) == 4
