"""The table is complete and in order, independent of which worker ran which test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..order import NUMBER
from .table import Rows, Table


def report_of(
    request: pytest.FixtureRequest, number: int, rows: list[tuple[str, str, str, str]]
) -> pytest.TestReport:
    """A report with rows, serialised and restored as when it comes from a worker."""
    item = request.node
    before, item.user_properties, item.stash[NUMBER] = item.stash[NUMBER], [], number
    for row in rows:
        Rows(item).add(*row)
    properties, item.user_properties, item.stash[NUMBER] = item.user_properties, [], before
    report = pytest.TestReport("a", ("a", 1, "a"), {}, "passed", None, "call", user_properties=properties)
    hook, config = request.config.hook, request.config
    sent = json.dumps(hook.pytest_report_to_serializable(config=config, report=report))
    received = hook.pytest_report_from_serializable(config=config, data=json.loads(sent))
    assert isinstance(received, pytest.TestReport)
    return received


def test_rows_are_in_the_order_of_the_tests(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    table = Table(tmp_path / "table.md")
    later = [("Sizes", "v", "2", "9"), ("Sizes", "v, wide", "3", "9"), ("Batches", "v", "4", "9")]
    table.pytest_runtest_logreport(report_of(request, 7, later))
    table.pytest_runtest_logreport(report_of(request, 5, [("Sizes", "base", "1", "9")]))
    table.pytest_sessionfinish(pytest.ExitCode.OK)
    lines = (tmp_path / "table.md").read_text().splitlines()
    start = lines.index("## Batches")
    assert [line for line in lines[start:] if line] == [
        "## Batches",
        "| comparison | measured | bound |",
        "| --- | --- | --- |",
        "| v | 4 | 9 |",
        "## Sizes",
        "| comparison | measured | bound |",
        "| --- | --- | --- |",
        "| base | 1 | 9 |",
        "| v | 2 | 9 |",
        "| v, wide | 3 | 9 |",
    ]


@pytest.mark.parametrize("exitcode", [pytest.ExitCode.INTERRUPTED, pytest.ExitCode.OK])
def test_no_table_of_part_of_a_run(
    request: pytest.FixtureRequest, tmp_path: Path, exitcode: pytest.ExitCode
) -> None:
    table = Table(tmp_path / "table.md")
    if exitcode != pytest.ExitCode.OK:
        table.pytest_runtest_logreport(report_of(request, 1, [("Sizes", "base", "1", "9")]))
    table.pytest_sessionfinish(exitcode)
    assert not (tmp_path / "table.md").exists()
