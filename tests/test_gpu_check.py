"""The GPU check where there is no GPU: what it keeps, what it skips and what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def check(workdir: Path, *arguments: str) -> list[str]:
    """Run it with no GPU, and return the lines that it prints."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--dry-run", "--workdir", str(workdir)]
    command += ["--output", str(workdir / "out"), *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return ran.stdout.splitlines()


@pytest.fixture
def workdir(tmp_path: Path, small_bundle: Path) -> Path:
    """A working folder whose bundle is there already."""
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "small-2.1-base-fp16").symlink_to(small_bundle)
    return tmp_path


def test_a_dry_run_says_what_it_found_and_why_it_skipped_what(workdir: Path) -> None:
    fast = ("--steps", "2", "--rounds", "1", "--batches", "1")
    told = check(workdir, "--stages", "philox", "speed-onnxruntime", *fast)
    assert "philox: skipped" in " ".join(told)
    data, page = (next((workdir / "out").glob(f"*-gpu-check-dry.{kind}")) for kind in ("json", "md"))
    result = json.loads(data.read_text())
    assert list(result["stages"]) == ["philox", "speed-onnxruntime@2.1-base"]
    philox, speed = result["stages"].values()
    assert (philox["outcome"], philox["records"]) == ("skipped", [])
    assert "GPU" in philox["reason"]
    assert (speed["outcome"], speed["reason"]) == ("done", None)
    steps = next(record for record in speed["records"] if "steps" in record and "it_s" in record)
    assert steps["it_s"]["median"] > 0
    assert steps["batch"] == 1
    assert "sd2rt" in result["machine"]["packages"]
    text = page.read_text()
    assert "| philox | skipped |" in text
    assert "## speed-onnxruntime@2.1-base" in text
    assert str(workdir) not in text + data.read_text()
    # What is done is kept; what could not be done is tried again.
    told = check(workdir, "--stages", "speed-onnxruntime", *fast)
    assert told[0].startswith("speed-onnxruntime@2.1-base: done before")
    # A checkout needs no installation: what pip would have written is in the working folder.
    (found,) = distributions(path=[str(workdir / "site")])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (found.name, found.version) == ("sd2rt", project["version"])
    assert {
        point.name: point.value for point in found.entry_points if point.group == "sd2rt.commands"
    } == project["entry-points"]["sd2rt.commands"]
    assert (workdir / "site" / "sd2rt" / "runtime").resolve() == ROOT / "runtime"


def test_a_stage_past_its_limit_is_stopped_and_recorded(tmp_path: Path) -> None:
    told = check(tmp_path, "--stages", "facts", "--limit", "0.01")
    assert "facts: stopped" in " ".join(told)
    (data,) = (tmp_path / "out").glob("*.json")
    assert json.loads(data.read_text())["stages"]["facts"]["reason"] == "it took longer than 0.01 s"


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--workdir", str(tmp_path), "--stages", "speeed"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr == "there is no stage speeed: see --list\n"
