"""The page on compatibility: a small result rendered, and the stored ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compatibility import a1111_reference as reference
from benchmarks.compatibility.__main__ import SAMPLERS, rows
from benchmarks.page import compatibility
from benchmarks.page.latest import Results
from benchmarks.recording.report import RESULTS

MACHINE = {"date": "2030-01-02T00:00:00+00:00", "commit": "c" * 40, "cores": 2, "cpu": "some"}
REFUSAL = "unipc of order 3 needs more steps"


def result(bundle: str, **changes: Any) -> dict[str, Any]:
    return {
        "benchmark": "compatibility",
        "machine": MACHINE,
        "steps": [8, 20],
        "strength": 0.6,
        "bundle": bundle,
        "complete": True,
        "samplers": {
            "Euler": {"Automatic": {"text": [1e-7, 2e-7], "image": [3e-7, 1e-6]}},
            "DPM++ SDE": {"Karras": {"text": [1e-7, 4e-4], "image": [3e-7, 1e-6]}},
            "UniPC": {"Automatic": {"text": [1e-7, 2e-7], "image": [REFUSAL, 1e-6]}},
        },
        **changes,
    }


def page_of(folder: Path, *results: dict[str, Any]) -> str:
    for value in results:
        (folder / f"{value['bundle']}.json").write_text(json.dumps(value))
    return compatibility.page(Results(folder), folder)


def test_a_page_of_two_bundles(tmp_path: Path) -> None:
    page = page_of(tmp_path, result("demo"), result("demo-v"))
    assert "| demo | 12 | 10 | 1 | 1 | 0 |" in page
    assert "| all | 24 | 20 | 2 | 2 | 0 |" in page
    assert "| Euler | `euler` | Uniform | 1e-06 | 8 exact |" in page
    assert "| DPM++ SDE | `dpmpp-sde` | Karras | 4e-04 | 6 exact, 2 close |" in page
    assert "| UniPC | `unipc` | its own timesteps | 1e-06 | 6 exact, 2 refused |" in page
    assert f"| UniPC, 8 steps, from image | {REFUSAL} |" in page
    assert "| Karras | `karras` | 0e+00 | 4e-04 |" in page
    assert "$" not in page


def test_a_silent_difference_is_counted(tmp_path: Path) -> None:
    wrong = result("demo", samplers={"Euler": {"Automatic": {"text": [0.1, 2e-7], "image": [3e-7, 1e-6]}}})
    assert "| demo | 4 | 3 | 0 | 0 | 1 |" in page_of(tmp_path, wrong)


def test_an_interrupted_result_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="incomplete"):
        page_of(tmp_path, result("demo", complete=False))


def test_the_stored_results_have_every_case_and_no_silent_one() -> None:
    found = compatibility.by_bundle(Results(RESULTS))
    assert {each["bundle"] for each in found} == {"demo", "demo-v"}
    for each in found:
        assert each["steps"] == [8, 17, 20, 30]
        assert set(each["samplers"]) == set(SAMPLERS)
        for sampler, schedules in each["samplers"].items():
            assert len(schedules) == (len(reference.SCHEDULES) if sampler in reference.SAMPLERS else 1)
            for cases in schedules.values():
                outcomes = [compatibility.outcome(one) for values in cases.values() for one in values]
                assert len(outcomes) == 8
                assert "silent" not in outcomes
        assert len(rows(each)) > 100
