"""The section on predicted times: the goal, and tables from the newest prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cost_model.kernels import KINDS
from benchmarks.page import prediction
from benchmarks.page.latest import Results
from benchmarks.recording.report import RESULTS


def newest() -> dict[str, Any]:
    return Results(RESULTS).newest("prediction").value


def results(folder: Path, ms: dict[str, float]) -> Results:
    value = newest()
    for case in value["cases"]:
        if (case["graph"], case["options"], case["side"], case["batch"]) == (
            "best forms",
            "best options",
            512,
            1,
        ):
            case["ms"] = ms
    (folder / "prediction.json").write_text(json.dumps(value))
    return Results(folder)


@pytest.mark.parametrize(
    ("ms", "holds"),
    [
        ({"low": 3.0, "expected": 4.9, "high": 8.0}, "is predicted to be met"),
        ({"low": 4.9, "expected": 6.0, "high": 9.0}, "only if every assumption is favourable"),
        ({"low": 5.1, "expected": 6.0, "high": 9.0}, "is out of reach"),
    ],
)
def test_the_goal_is_compared_with_the_best_forms(tmp_path: Path, ms: dict[str, float], holds: str) -> None:
    text = prediction.verdict(results(tmp_path, ms), tmp_path)
    assert f"The goal of 5 ms {holds}." in " ".join(text.split()) or holds in text
    assert f"{ms['expected']:.1f} ({ms['low']:.1f} to {ms['high']:.1f}) ms" in text


def test_every_table_is_rendered(tmp_path: Path) -> None:
    own = Results(RESULTS)
    times = prediction.times(own, tmp_path)
    assert times.count("| plain, without tensor cores |") == 2
    assert "| 512x512, ms | batch 1 | batch 2 | batch 4 | batch 8 | batch 16 |" in times
    kinds = prediction.kinds(own, tmp_path).splitlines()
    assert [line.split("|")[1].strip() for line in kinds[2:]] == [*KINDS, "all"]
    assert "| A800, 512 |" in prediction.check(own, tmp_path)
    assert "an H200" in prediction.assumptions(own, tmp_path)


def test_the_estimates_groups_have_every_kind_once(tmp_path: Path) -> None:
    case = next(c for c in newest()["cases"] if (c["graph"], c["side"], c["batch"]) == ("plain", 512, 1))
    *groups, total = prediction.earlier(Results(RESULTS), tmp_path).splitlines()[2:]
    launches = [int(line.split("|")[4]) for line in (*groups, total)]
    assert sum(launches[:-1]) == launches[-1] == case["launches"]


def test_the_result_adds_up() -> None:
    value = newest()
    for case in value["cases"]:
        if "kinds" in case:
            for scenario, ms in case["ms"].items():
                assert sum(each["ms"][scenario] for each in case["kinds"].values()) == pytest.approx(
                    ms, abs=0.02
                )
            assert sum(each["launches"] for each in case["kinds"].values()) == case["launches"]
            assert sum(each["bytes"] for each in case["kinds"].values()) == case["bytes"]
    assert value["operations"]["512x1"] == pytest.approx(1.6085e12, rel=2e-3)
    assert value["operations"]["768x1"] == pytest.approx(4.2982e12, rel=2e-3)
