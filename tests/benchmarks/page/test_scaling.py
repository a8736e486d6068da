"""The page on scaling: every case of the benchmark has its place."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.page import scaling
from benchmarks.page.latest import NotMeasuredError, Results
from benchmarks.recording import report
from benchmarks.routing.__main__ import cases, decision_us, rows


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """All cases, each with shares of its own."""
    listed = cases()
    keys = ("refused", "goodput", "slowdown", "slowdown_p95", "loads", "batch")
    return {
        "benchmark": "routing",
        "machine": {"date": "2030-01-02T00:00:00+00:00", "commit": "c" * 40, "cores": 2, "cpu": "some"},
        "complete": True,
        "per_device": 10,
        "least_requests": 20,
        "seeds": 1,
        "steps": [4, 20],
        "objective": 3.0,
        "bundles": {"a": 0.75, "b": 0.25},
        "sizes": {"512": 0.7, "768": 0.3},
        "keep": 2,
        "load_seconds": 5.0,
        "spill": 8,
        "max_images": 64,
        "bursts": [3.0, 1 / 3, 5.0, 15.0],
        "cases": [
            asdict(case)
            | {"met": report.summary([0.1 + number / 1000])}
            | {key: report.summary([7.0]) for key in keys}
            for number, case in enumerate(listed)
        ],
        "decisions": [decision_us(4)],
    }


def test_every_case_is_on_the_page(result: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "routing.json").write_text(json.dumps(result))
    page = scaling.page(Results(tmp_path), tmp_path)
    for case in result["cases"]:
        # Cells hold the share alone, or with the goodput.
        assert f"| {case['met']['median']:#.3g}" in page, case
    assert "shares of 75%, 25%; sizes 512 (70%) and 768 (30%)" in page
    assert "3 times its mean for 5 s, 0.33 times for 15 s" in page
    assert page.count("\n| 4 | ") == 1
    assert "$" not in page
    assert len(list(rows(result))) == len(result["cases"])


def test_an_interrupted_run_is_not_shown(result: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "routing.json").write_text(json.dumps(result | {"complete": False}))
    with pytest.raises(NotMeasuredError, match="routing"):
        scaling.page(Results(tmp_path), tmp_path)
