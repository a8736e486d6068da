"""`sd2rt bench --compare`: ratios, differences, and files that are not results."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from sd2rt.runtime.bench.comparison import compare, figures, read_result

from ..conftest import Command, Refused

pytestmark = pytest.mark.usefixtures("here", "quick_opening")
FAST = ("--steps", "3", "--threads", "1", "--repetitions", "2", "--no-first-image")


def spread(*values: float) -> dict[str, float]:
    low, middle, high = values
    return {"median": middle, "min": low, "max": high, "n": 3}


def example_result() -> dict[str, Any]:
    return {
        "benchmark": "bench",
        "bundle": {"name": "demo", "identity": "a"},
        "settings": {"threads": 1, "steps": 20},
        "opening": {"seconds": 2.0},
        "first_image": None,
        "cases": [
            {
                "width": 64,
                "height": 64,
                "batch": 1,
                "calls": 20,
                "it_per_second": spread(9, 10, 11),
                "stages": {"png": spread(0, 0, 0)},
                "device_bytes": None,
            }
        ],
        "peak_rss_bytes": 100,
        "machine": {
            "cpu": "one",
            "date": "2026-01-01",
            "packages": {"numpy": "2"},
            "load_average": [1, 2, 3],
        },
    }


def test_figures_are_what_was_measured() -> None:
    assert {name: figure.value for name, figure in figures(example_result()).items()} == {
        "opening, seconds": 2.0,
        "peak_rss_bytes": 100.0,
        "64x64 x 1, it_per_second": 10.0,
        "64x64 x 1, stages, png": 0.0,
    }


def test_ratio_and_whether_it_may_be_chance() -> None:
    new = example_result()
    new["cases"][0]["it_per_second"] = spread(19, 20, 21)
    new["opening"]["seconds"] = 1.0
    found = compare(new, example_result())["figures"]
    assert found["64x64 x 1, it_per_second"] == {"old": 10.0, "new": 20.0, "ratio": 2.0, "apart": True}
    assert found["opening, seconds"] == {"old": 2.0, "new": 1.0, "ratio": 0.5, "apart": None}
    assert found["64x64 x 1, stages, png"]["ratio"] is None
    new["cases"][0]["it_per_second"] = spread(11, 20, 21)
    assert compare(new, example_result())["figures"]["64x64 x 1, it_per_second"]["apart"] is False


def test_differences_are_told() -> None:
    new = example_result()
    new["bundle"]["identity"] = "b"
    new["settings"]["steps"] = 10
    new["machine"] |= {"cpu": "two", "date": "2026-02-02", "packages": {"numpy": "2", "onnxruntime": "1"}}
    assert compare(new, example_result())["differences"] == [
        'bundle.identity is "b", was "a"',
        "settings.steps is 10, was 20",
        'machine.cpu is "two", was "one"',
        'machine.packages.onnxruntime is "1", was not recorded',
    ]


def test_cases_that_only_one_has() -> None:
    new, old = example_result(), example_result()
    new["cases"][0]["batch"] = 2
    found = compare(new, old)
    assert found["only_new"] == ["64x64 x 2, it_per_second", "64x64 x 2, stages, png"]
    assert found["only_old"] == ["64x64 x 1, it_per_second", "64x64 x 1, stages, png"]
    assert set(found["figures"]) == {"opening, seconds", "peak_rss_bytes"}


@pytest.mark.parametrize("how", ["line", "indented", "printed"])
def test_result_is_read_back(how: str, tmp_path: Path) -> None:
    path = tmp_path / "result"
    text = json.dumps(example_result(), indent=2 if how == "indented" else None)
    path.write_text(f"it/s  10\n\n{text}\n" if how == "printed" else text)
    assert read_result(path) == example_result()


def test_against_itself(sd2rt: Command, small_bundle: Path, here: Path) -> None:
    assert sd2rt("bench", small_bundle, *FAST, "-o", "old.json").code == 0
    said = sd2rt("bench", small_bundle, *FAST, "--guidance", "1", "--compare", "old.json")
    *tables, line = said.out.splitlines()
    found = json.loads(line)["comparison"]
    assert found["differences"] == ["settings.guidance_scale is 1.0, was 7.5"]
    assert (found["only_new"], found["only_old"]) == ([], [])
    assert len(found["load_average"]["old"]) == len(found["load_average"]["new"]) == 3
    rate = found["figures"]["64x64 x 1, it_per_second"]
    assert rate["ratio"] == pytest.approx(rate["new"] / rate["old"], rel=1e-4)
    old = json.loads((here / "old.json").read_text())
    assert rate["old"] == old["cases"][0]["it_per_second"]["median"]
    assert "different: settings.guidance_scale is 1.0, was 7.5" in tables
    assert any(row.startswith("64x64 x 1, it_per_second") for row in tables)


def damaged(result: dict[str, Any], name: str) -> dict[str, Any]:
    changed = copy.deepcopy(result)
    changed[name] = 3
    return changed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is not a result of 'sd2rt bench'"),
        (b"{", "is not a result of 'sd2rt bench'"),
        (b"[" * 100_000, "is not a result of 'sd2rt bench'"),
        (b"\xff\xfe", "cannot be read (it is not a text file)"),
        (b"7", "is not a result of 'sd2rt bench'"),
        (b'{"benchmark": "startup"}', "is not a result of 'sd2rt bench'"),
        (b'{"benchmark": "bench"}', "is a damaged result of 'sd2rt bench': run the benchmark again"),
        *(
            (json.dumps(damaged(example_result(), name)).encode(), "is a damaged result")
            for name in ("bundle", "settings", "cases", "machine")
        ),
        (json.dumps(example_result() | {"cases": [], "opening": 0, "peak_rss_bytes": None}).encode(), ""),
    ],
    ids=lambda value: None,
)
def test_foreign_file(refused: Refused, small_bundle: Path, tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(text)
    if not said:
        assert set(figures(json.loads(text))) == {"opening"}
        return
    assert said in refused(2, "bench", small_bundle, *FAST, "--compare", path)


def test_missing_file(refused: Refused, small_bundle: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        said = refused(2, "bench", small_bundle, *FAST, "--compare", path)
        assert said.startswith(f"--compare {path} cannot be read (")


def test_foreign_file_is_found_before_the_bundle_is_read(refused: Refused, tmp_path: Path) -> None:
    refused(2, "bench", "./none", *FAST, "--compare", tmp_path / "none.json")
