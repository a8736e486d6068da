"""The quick check's records as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu.quick.records import OUTCOME, outcome
from benchmarks.gpu.tables import record_tables, table

FILE = "report.md"


def write_report(stages: dict[str, list[dict[str, Any]]], path: Path, heading: str) -> None:
    """Replace the report: an outcome of every stage, then a table of each one's records."""
    rows = []
    for name, records in stages.items():
        ended = outcome(records)
        rows.append((name, ended[OUTCOME], ended.get("seconds"), ended.get("reason")))
    lines = ["# Quick GPU check", "", heading, "", *table(("stage", "outcome", "s", "reason"), rows)]
    for name, records in stages.items():
        shown = [record for record in records if OUTCOME not in record and "started" not in record]
        if shown:
            lines += ["", f"## {name}", "", *record_tables(shown)]
    temporary = path.with_suffix(".new")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(path)
