"""The rendered pages match the results, and missing results are reported."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import render, roofline
from benchmarks.cost_model.counts import Counts
from benchmarks.page.goals import GOALS, goals, verdict
from benchmarks.page.latest import NotMeasuredError, Results
from benchmarks.page.tables import SECTIONS
from benchmarks.recording import report
from benchmarks.scaling import __main__ as scaling

MACHINE = {
    "date": "2030-01-02T00:00:00+00:00",
    "commit": "c" * 40,
    "cores": 2,
    "cpu": "some",
    "load_average": [0, 0, 0],
}


def write(folder: Path, name: str, **value: Any) -> None:
    date = value.pop("date", MACHINE["date"])
    text = json.dumps({"benchmark": name, **value, "machine": {**MACHINE, "date": date}})
    (folder / f"{date[:10]}-{name}.json").write_text(text)


def summary(*values: float) -> dict[str, float]:
    return report.summary(values)


def peer(precision: str, step: float, to_ours: float, to_diffusers: float) -> dict[str, Any]:
    def ratio(value: float) -> dict[str, Any]:
        return {"seconds_per_step": summary(value, value * 1.1), "seconds_per_image": summary(value)}

    return {
        "label": "a peer",
        "available": True,
        "version": {},
        "precision": precision,
        "open_seconds": 1.25,
        "warmup_seconds": 2.5,
        "seconds_per_step": summary(step),
        "seconds_per_image": summary(step * 10),
        "peak_rss_bytes": 5_000_000_000,
        "image": {"max_pixel": 1, "psnr_db": 61.25},
        "ratio": {"sd2rt": ratio(to_ours), "diffusers": ratio(to_diffusers)},
    }


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    """A folder with one result of full-size peers."""
    write(
        tmp_path,
        "peers-full",
        size=[512, 512],
        steps=4,
        pairs=2,
        threads=2,
        peers={
            "sd2rt": peer("fp32", 6.0, 1.0, 0.8),
            "sd2rt-bf16": peer("bf16", 1.5, 0.25, 0.2),
            "diffusers": peer("fp32", 7.5, 1.25, 1.0),
            "openvino": peer("fp32", 6.6, 1.1, 0.88),
            "openvino-bf16": peer("bf16", 1.6, 0.27, 0.21),
            "optimum-onnx": {"label": "optimum", "available": False, "reason": "it is not installed"},
        },
    )
    return tmp_path


def test_committed_pages_are_what_the_results_give() -> None:
    code = [sys.executable, "-m", "benchmarks.render", "--check"]
    run = subprocess.run(code, cwd=render.ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_links_of_the_page_lead_somewhere() -> None:
    for page in (render.README, render.PAGE, render.RELIABILITY, render.SCHEDULING):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_a_stale_page_is_noticed(tmp_path: Path, peers: Path) -> None:
    output = tmp_path / "pages"
    command = [sys.executable, "-m", "benchmarks.render", "--results", str(peers), "--output", str(output)]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], cwd=render.ROOT, capture_output=True, text=True, check=False)

    assert run("--check").returncode == 1
    assert not output.exists()
    assert run().returncode == 0
    assert run("--check").returncode == 0
    page = output / "performance.md"
    page.write_text(page.read_text().replace("61.2", "99.9"))
    stale = run("--check")
    assert stale.returncode == 1
    assert stale.stderr.count("\n") == 1


def test_missing_results_are_said_to_be(tmp_path: Path) -> None:
    page = render.page(Results(tmp_path), tmp_path)
    assert page.count("Not measured yet") == len(SECTIONS)
    assert page.count("| not measured yet |") == len(GOALS)
    write(tmp_path, "noise", unit="ms")
    assert "Not measured yet: the result has no 'cases'." in render.page(Results(tmp_path), tmp_path)


def test_the_newest_result_counts(tmp_path: Path) -> None:
    for day, value in (("2030-02-01", 2), ("2030-03-01", 3), ("2030-01-01", 1)):
        write(tmp_path, "plans", date=f"{day}T00:00:00+00:00", value=value)
    results = Results(tmp_path)
    assert results.newest("plans").value["value"] == 3
    assert [r.value["value"] for r in results.each("plans", lambda value: value["value"] % 2)] == [3, 2]
    with pytest.raises(NotMeasuredError, match="no result of noise"):
        results.newest("noise")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        Results(tmp_path)


def test_goals_are_ratios_of_what_was_measured(peers: Path) -> None:
    lines = goals(Results(peers), peers).splitlines()
    step = next(line for line in lines if "fastest fp32 peer" in line)
    # OpenVINO's step takes 1.1 to 1.21 of ours, so ours takes 1 / 1.155 of its.
    assert "| 0.866 (0.826 to 0.909) | yes |" in step
    assert "| 0.210 (0.200 to 0.220) | yes |" in next(
        line for line in lines if "over diffusers' in fp32" in line
    )
    # 0.2 and 0.21 of diffusers' in the same rounds.
    assert "| 0.952 | yes |" in next(line for line in lines if "over OpenVINO's own" in line)
    assert "| 1.25 s | yes |" in next(line for line in lines if "opening" in line)


@pytest.mark.parametrize(
    ("low", "median", "verdict_text"),
    [(0.9, 1.0, "yes"), (0.9, 1.01, "**no**, within its spread"), (1.01, 1.02, "**no**")],
)
def test_a_goal_is_missed_by_more_or_less_than_the_spread(
    low: float, median: float, verdict_text: str
) -> None:
    assert verdict({"min": low, "median": median, "max": 1.1}, 1.0) == verdict_text


def test_peers_that_are_missing_are_named(peers: Path) -> None:
    page = render.page(Results(peers), peers)
    assert "- optimum (optimum-onnx): it is not installed" in page
    rows = [line for line in page.splitlines() if line.startswith("| a peer")]
    assert [re.findall(r"\(([a-z0-9-]+)\)", row)[0] for row in rows[:2]] == ["sd2rt-bf16", "openvino-bf16"]


def test_a_readme_without_markers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exactly one line"):
        render.with_table("no markers", Results(tmp_path))


def test_a_result_elsewhere_links_its_plot(tmp_path: Path) -> None:
    committed = sorted(report.RESULTS.glob("*-host-overhead.json"))[-1]
    shutil.copy(committed, tmp_path)
    page = render.page(Results(tmp_path), tmp_path)
    assert f"[{committed.name}]({committed.name})" in page


def test_roofline_says_what_bounds() -> None:
    counts = Counts(linear=1_000, weight_bytes=10)
    turns = [{"gemm_fp32": 2_000.0, "copy": 1_000.0}] * 2
    fast = roofline.roofline(counts, [1.0, 2.0], turns)
    assert fast["share"]["gemm_fp32"] == summary(0.5, 0.25)
    assert fast["bound"] == "compute"
    assert fast["roofline_share"] == 0.375
    slow = roofline.roofline(Counts(linear=1_000, weight_bytes=900), [1.0, 2.0], turns)
    assert slow["bound"] == "memory"
    assert slow["roofline_share"] == 0.675


def test_exponents_are_those_of_powers() -> None:
    xs = [1.0, 2.0, 4.0, 8.0]
    values = [[3 * x**1.5, 5 * x**0.5] for x in xs]
    assert scaling.exponents(xs, values) == pytest.approx([1.5, 0.5])


def test_growth_that_is_worse_than_linear_is_explained() -> None:
    def curve(exponent: float, flops: float) -> dict[str, Any]:
        return {
            "time_exponent": summary(exponent),
            "flops_exponent": flops,
            "flops": [10**9, 10**10],
            "seconds": [summary(1.0), summary(20.0)],
            "memory_exponent": summary(1.4),
        }

    counts = [
        Counts(conv=900, self_attention=100, score_bytes=10**6, activation_bytes=2 * 10**6),
        Counts(conv=500, self_attention=500, score_bytes=4 * 10**6, activation_bytes=9 * 10**6),
    ]
    explained = scaling.note(curve(1.3, 1.25), counts)
    assert "the operations grow by 1.25" in explained
    assert "from 10% to 50%" in explained
    assert "GFLOP/s" not in explained
    assert "scores go from 1 to 4 MB" in explained
    worse = scaling.note(curve(1.6, 1.25), counts)
    assert "from 1 to 0 GFLOP/s" in worse
    assert "from 2 to 9 MB" in worse
    for flat in (summary(1.05), summary(0.9, 1.2, 1.5)):
        calm = {**curve(1.0, 1.0), "time_exponent": flat, "memory_exponent": summary(0.8)}
        assert scaling.note(calm, counts) == ""
