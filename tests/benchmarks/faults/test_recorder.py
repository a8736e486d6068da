"""Counting cases by outcome, and the file of cases."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.faults.recorder import FAULTS, Recorder


def test_cases_are_on_disk_as_soon_as_they_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cases.jsonl"
    with Recorder(path) as recorder:
        for number, outcome in enumerate(("held", "wrong", "held")):
            recorder.record("swaps", outcome, f"case {number}", "detail")  # type: ignore[arg-type]
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            assert len(lines) == number + 1
            assert lines[-1] == {
                "group": "swaps",
                "outcome": outcome,
                "case": f"case {number}",
                "detail": "detail",
            }


def test_counts_by_group_and_fault() -> None:
    recorder = Recorder()
    recorder.record("a", "held", "1")
    recorder.record("b", "hang", "2", "took 60 s")
    recorder.record("a", "held", "3")
    assert recorder.counts() == {"a": {"held": 2}, "b": {"hang": 1}}
    assert recorder.rows() == [
        ["a", "2 of 2", *(0 for _ in FAULTS)],
        ["b", "0 of 1", *(int(fault == "hang") for fault in FAULTS)],
    ]
    assert [fault["case"] for fault in recorder.facts()["faults"]] == ["2"]
