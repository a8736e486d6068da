"""The page on reliability: one row a group, faults counted, kinds that were not searched for named."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.page import reliability
from benchmarks.page.latest import Results


def test_counts_and_what_is_missing(tmp_path: Path) -> None:
    machine = {"date": "2030-01-02T00:00:00+00:00", "commit": "c" * 40, "cores": 2, "cpu": "some"}
    value = {
        "benchmark": "faults-swap",
        "machine": machine,
        "seed": 7,
        "complete": False,
        "counts": {"builds": {"held": 74}, "quick swaps": {"held": 38, "wrong": 2}},
    }
    (tmp_path / "swap.json").write_text(json.dumps(value))
    page = reliability.page(Results(tmp_path), tmp_path)
    assert "| swap | builds | 74 of 74 | 0 | 0 | 0 | 0 | 0 | 0 |" in page
    assert "| swap | quick swaps | 38 of 40 | 2 | 0 | 0 | 0 | 0 | 0 |" in page
    assert (
        "Not measured yet: kill, damage, hostile, interleave, growth, fuzz, ray, serve, ray-serve, triton."
        in page
    )
    assert "seed 7: [swap.json](swap.json)" in page
    assert "interrupted" in page
