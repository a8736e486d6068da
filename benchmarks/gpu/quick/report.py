"""The quick check's records as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.quick.ort_options import stage_name
from benchmarks.gpu.quick.records import OUTCOME, outcome
from benchmarks.gpu.tables import record_tables, table

FILE = "report.md"


def write_report(
    stages: dict[str, list[dict[str, Any]]],
    path: Path,
    heading: str,
    predicted: Sequence[dict[str, Any]] = (),
) -> None:
    """Replace the report: an outcome of every stage, options and forms, then a table of each stage's records."""
    rows = []
    for name, records in stages.items():
        ended = outcome(records)
        rows.append((name, ended[OUTCOME], ended.get("seconds"), ended.get("reason")))
    lines = ["# Quick GPU check", "", heading, "", *table(("stage", "outcome", "s", "reason"), rows)]
    if predicted:
        lines += ["", "## Options and forms", "", _PREDICTION, "", *_cells(stages, predicted)]
    for name, records in stages.items():
        shown = [record for record in records if OUTCOME not in record and "started" not in record]
        if shown:
            lines += ["", f"## {name}", "", *record_tables(shown)]
    temporary = path.with_suffix(".new")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(path)


_PREDICTION = (
    "Milliseconds of a guided step. Predicted for an H100 with every assumption at its expected value, in brackets "
    "with all at their favourable and unfavourable ones; without tensor cores if `use_tf32` 0 takes them away."
)
_CELLS = (
    "options", "form", "predicted", "without tensor cores", "measured, CUDA graph", "measured, no graph", "error",
)  # fmt: skip


def _cells(stages: dict[str, list[dict[str, Any]]], predicted: Sequence[dict[str, Any]]) -> list[str]:
    """A row for each pair of options and form, predicted and measured."""
    rows = []
    for cell in predicted:
        records = stages.get(stage_name(cell["options"], cell["form"]), [])
        measured = {record["graph"]: record["ms"] for record in records if "ms" in record}
        errors = [record["relative_error"] for record in records if "relative_error" in record]
        rows.append(
            (
                cell["options"], cell["form"], _range(cell["ms"]), _range(cell["ms_without_tensor_cores"]),
                measured.get(True), measured.get(False), max(errors, default=None),
            )
        )  # fmt: skip
    return table(_CELLS, rows)


def _range(ms: dict[str, float] | None) -> str | None:
    return None if ms is None else f"{ms['expected']} ({ms['low']} to {ms['high']})"
