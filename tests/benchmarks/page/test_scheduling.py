"""The page on scheduling: a small result rendered, goals that are missed shown as such."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.page import scheduling
from benchmarks.page.latest import NotMeasuredError, Results
from benchmarks.scheduling.__main__ import measure, rows
from benchmarks.scheduling.plot import save_plot

MACHINE = {"date": "2030-01-02T00:00:00+00:00", "commit": "c" * 40, "cores": 2, "cpu": "some"}


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """Everything that is measured, with few requests."""
    return {
        "benchmark": "scheduling",
        "machine": MACHINE,
        "requests": 20,
        "seeds": 2,
        "steps": [4, 20],
        "objective": 3.0,
        "curve": {"1": 0.167, "8": 0.425},
        "complete": True,
        **measure(20, [1, 2]),
    }


DEMO = {
    "benchmark": "scheduling-demo",
    "machine": MACHINE,
    "requests": 5,
    "seeds": 1,
    "complete": True,
    "cases": [
        {
            "rate": 0.5,
            "policies": {
                "first come, first served": [{"latency": 2.0, "slowdown": 3.0, "met": 0.25}],
                "continuous": [{"latency": 1.0, "slowdown": 1.5, "met": 0.75}],
            },
        }
    ],
}


def page_of(folder: Path, result: dict[str, Any]) -> str:
    (folder / "scheduling-demo.json").write_text(json.dumps(DEMO))
    (folder / "scheduling.json").write_text(json.dumps(result))
    return scheduling.page(Results(folder), folder)


def test_a_page_of_a_result(tmp_path: Path, result: dict[str, Any]) -> None:
    page = page_of(tmp_path, result | {"plot": "scheduling.png"})
    assert "| objective met at 1.5 times serial capacity | >= 0.95 | 1 | yes |" in page
    assert "c(1, 8) = 0.167, 0.425 s" in page
    assert "On a linear curve (batch 1)" in page
    assert "](scheduling.png)" in page
    assert "| 0.5 | continuous | 0.500 | 0.750 | 1.50 |" in page
    assert "$" not in page
    assert [row[0] for row in rows(result)][:2] == ["serial", "static"]


def test_a_missed_goal_is_shown(tmp_path: Path, result: dict[str, Any]) -> None:
    missed = json.loads(json.dumps(result))
    missed["policies"]["continuous"][2]["met"]["min"] = 0.949
    missed["linear"][0]["one caller"]["max"] = 1.06
    page = page_of(tmp_path, missed)
    assert page.count("**no**") == 2
    assert "| <= 1.05 | 1.06 | **no** |" in page


def test_an_interrupted_result_is_no_result(tmp_path: Path, result: dict[str, Any]) -> None:
    with pytest.raises(NotMeasuredError):
        page_of(tmp_path, result | {"complete": False})


def test_a_plot(tmp_path: Path, result: dict[str, Any]) -> None:
    save_plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
