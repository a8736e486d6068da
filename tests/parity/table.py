"""The table of errors that a run of the parity tests leaves, in one process or in several workers."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from ..order import NUMBER

TABLE_VARIABLE = "SD2RT_PARITY_TABLE"
"""Where to write the table, if anywhere: `make parity` sets it to docs/parity.md."""

_PROPERTY = "parity"

Row = tuple[str, str, str]
"""What was compared, its error, the bound."""


class Rows:
    """What one test measured. It travels with the test's report, as that is all a worker hands over."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item

    def add(self, section: str, what: str, error: str, bound: str) -> None:
        self._item.user_properties.append(
            (_PROPERTY, (self._item.stash[NUMBER], section, (what, error, bound)))
        )


class Table:
    """A plugin of the session, not of its workers: it hears every report, and writes the table at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[tuple[int, str, Row]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self._rows += [row for name, row in report.user_properties if name == _PROPERTY]  # type: ignore[misc]

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if self._rows and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            self._path.write_text(self._text(), encoding="utf-8")

    def _text(self) -> str:
        names = ("torch", "diffusers", "transformers", "onnx", "onnxruntime")
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
        lines = [
            "# Parity with PyTorch",
            "",
            "Written by `make parity` from a run of `tests/parity`: do not edit. Small seeded checkpoints of SD2's",
            "architecture, in real formats; the reference is diffusers in float32 on the CPU; images are compared",
            f"before they are rounded to 8 bits. {versions}.",
        ]
        sections: dict[str, list[Row]] = {}
        # In the order of the tests, whichever worker was first; rows of one test stay as they were added.
        for _, section, row in sorted(self._rows, key=lambda row: row[0]):
            sections.setdefault(section, []).append(row)
        for section, rows in sorted(sections.items()):
            lines += ["", f"## {section}", "", "| what | measured | bound |", "| --- | --- | --- |"]
            lines += [f"| {what} | {error} | {bound} |" for what, error, bound in rows]
        return "\n".join(lines) + "\n"
