"""Pairs of options and form: the kit's graphs and predictions, their stages, and the table of the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from benchmarks.gpu.quick.ort_options import CELLS, CUDA_ONLY, FORMS, OPTIONS, PLAIN, form_file, stage_name
from benchmarks.gpu.quick.records import read
from benchmarks.gpu.quick.report import write_report
from benchmarks.gpu.quick.stages import STAGES, choose
from sd2rt.export.graphs.cuda_forms import forms as made

ROOT = Path(__file__).resolve().parents[4]


def test_the_names_are_those_of_the_export() -> None:
    assert {form for forms in FORMS.values() for form in forms} == set(made.FORMS)
    assert set(FORMS["default-forms"]) == set(made.DEFAULT_FORMS)
    assert set(CUDA_ONLY) == set(made.WITHOUT_CPU_KERNEL)
    assert len(set(CELLS)) == len(CELLS)
    assert {options for options, _ in CELLS} == set(OPTIONS)
    assert {form for _, form in CELLS} == set(FORMS)
    names = [stage.name for stage in STAGES]
    assert [name for name in names if name in {stage_name(*cell) for cell in CELLS}] == [
        stage_name(*cell) for cell in CELLS
    ]
    assert names.index("ort-default") < names.index("product-image")
    assert [stage.name for stage in choose(["ort-tf32@nhwc"])] == ["ort-tf32@nhwc"]


def test_a_kit_has_every_form_with_its_prediction(kit: Path) -> None:
    denoiser = kit / "content" / "bundle" / "denoiser"
    plain = onnx.load(denoiser / "model.onnx", load_external_data=False)
    for name in set(FORMS) - {PLAIN}:
        model = onnx.load(denoiser / form_file(name), load_external_data=False)
        assert [value.name for value in model.graph.input] == [value.name for value in plain.graph.input]
        operators = {node.op_type for node in model.graph.node}
        assert ("NhwcConv" in operators) == ("nhwc" in FORMS[name])
    cells = json.loads((kit / "content" / "predicted.json").read_text())
    assert [(cell["options"], cell["form"]) for cell in cells] == list(CELLS)
    by_cell = {(cell["options"], cell["form"]): cell for cell in cells}
    assert by_cell["tf32", "nhwc"]["ms"]["expected"] < by_cell["tf32", PLAIN]["ms"]["expected"]
    default = by_cell["default", PLAIN]
    assert default["ms"] == by_cell["tf32", PLAIN]["ms"]
    assert default["ms_without_tensor_cores"]["expected"] > default["ms"]["expected"]
    assert by_cell["tf32", PLAIN]["ms_without_tensor_cores"] is None


@pytest.mark.usefixtures("compiled_once")
def test_forms_are_measured_and_set_beside_the_prediction(kit: Path, tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "benchmarks.gpu_check",
        "--quick",
        "--small",
        "--kit",
        str(kit),
        "--rounds",
        "1",
    ]
    words += ["--output", str(tmp_path / "out"), "--workdir", str(tmp_path / "work")]
    words += ["--stages", "weights", "ort-default", "ort-tf32@default-forms", "ort-tf32@nhwc"]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    records = read(tmp_path / "out" / "records.jsonl")
    assert records["ort-tf32@default-forms"][-1]["outcome"] == "done"
    assert records["ort-tf32@nhwc"][-1]["reason"].startswith("only the CUDA provider")
    errors = [
        next(record for record in records[name] if "relative_error" in record)["relative_error"]
        for name in ("ort-default", "ort-tf32@default-forms")
    ]
    assert max(errors) < 2e-2
    report = (tmp_path / "out" / "report.md").read_text()
    assert "## Options and forms" in report
    section = report.partition("## Options and forms")[2].partition("\n## ")[0]
    (row,) = (line for line in section.splitlines() if line.startswith("| tf32 | default-forms |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    predicted = next(
        cell
        for cell in json.loads((kit / "content" / "predicted.json").read_text())
        if (cell["options"], cell["form"]) == ("tf32", "default-forms")
    )
    assert cells[2].startswith(f"{predicted['ms']['expected']} (")
    # Measured without a CUDA graph, as there is no GPU.
    assert cells[4] == ""
    assert float(cells[5].split()[0]) > 0


def test_a_kit_without_predictions_has_no_table(tmp_path: Path) -> None:
    write_report({"facts": [{"outcome": "done", "reason": None}]}, tmp_path / "report.md", "heading")
    assert "Options and forms" not in (tmp_path / "report.md").read_text()
