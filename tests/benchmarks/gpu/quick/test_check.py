"""A dry run of the quick check on the CPU: its records, its report, and what a killed stage leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.quick.records import read
from benchmarks.gpu.quick.stages import STAGES, choose

ROOT = Path(__file__).resolve().parents[4]

pytestmark = pytest.mark.usefixtures("compiled_once")


def command(kit: Path, folder: Path, *arguments: str) -> list[str]:
    words = [sys.executable, "-m", "benchmarks.gpu_check", "--quick", "--small", "--kit", str(kit)]
    return [*words, "--output", str(folder / "out"), "--workdir", str(folder / "work"), *arguments]


def check(kit: Path, folder: Path, *arguments: str) -> list[str]:
    ran = subprocess.run(
        command(kit, folder, *arguments), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_the_main_stages_on_the_cpu(kit: Path, tmp_path: Path) -> None:
    stages = ("weights", "ort-default", "ort-profile", "product", "rtx-tiny")
    check(kit, tmp_path, "--stages", *stages, "--rounds", "1")
    records = read(tmp_path / "out" / "records.jsonl")
    ended = {name: found[-1]["outcome"] for name, found in records.items()}
    assert ended == {
        "weights": "done",
        "ort-default": "done",
        "ort-profile": "done",
        "product-image": "done",
        "product-parity": "done",
        "product-speed": "done",
        "product-memory": "skipped",
        "rtx-tiny": "skipped",
    }
    placed = next(record for record in records["ort-default"] if "nodes" in record)
    assert placed["memcpy_nodes"] == 0
    assert placed["relative_error"] < 2e-2
    timed = next(record for record in records["ort-default"] if "ms" in record)
    assert timed["ms"]["n"] == 1
    assert timed["relative_error_after"] == placed["relative_error"]
    assert [record["batch"] for record in records["product-speed"] if "batch" in record] == [1, 4]
    assert all(record["relative_error"] < 2e-2 for record in records["product-parity"] if "part" in record)
    assert (tmp_path / "out" / "image.png").is_file()
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| ort-default | done |" in report
    assert "## product-speed" in report
    assert str(tmp_path) not in report
    # The next call of a lease has a new output folder, and all of the earlier records in it.
    lines = check(kit, tmp_path, "--stages", "weights", "--output", str(tmp_path / "next"))
    assert lines[0] == "weights: done before"
    assert read(tmp_path / "next" / "records.jsonl") == records


def test_a_stage_past_its_limit_keeps_its_records_and_the_next_one_runs(kit: Path, tmp_path: Path) -> None:
    many = ("--rounds", "1000000", "--limit", "12")
    lines = check(kit, tmp_path, "--stages", "weights", "ort-default", "rtx-tiny", *many)
    records = read(tmp_path / "out" / "records.jsonl")
    assert any("relative_error" in record for record in records["ort-default"])
    assert records["ort-default"][-1]["outcome"] == "stopped"
    assert records["rtx-tiny"][-1]["outcome"] == "skipped"
    assert any(line.startswith("ort-default: stopped: it took longer than 12 s") for line in lines)
    assert "## ort-default" in (tmp_path / "out" / "report.md").read_text()


def test_a_killed_check_loses_nothing_and_goes_on(kit: Path, tmp_path: Path) -> None:
    words = command(kit, tmp_path, "--stages", "weights", "ort-default", "--rounds", "1000000")
    running = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    path = tmp_path / "out" / "records.jsonl"
    end = time.monotonic() + 60
    while not any("relative_error" in record for record in read(path).get("ort-default", [])):
        assert time.monotonic() < end, "no record in a minute"
        assert running.poll() is None
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    # What a machine that goes away in the middle of a line leaves.
    with path.open("a") as file:
        file.write('{"stage": "ort-def')
    kept = read(path)
    assert any("relative_error" in record for record in kept["ort-default"])
    with path.open("a") as file:
        file.write("\n")
    lines = check(kit, tmp_path, "--stages", "weights", "ort-default", "--rounds", "1")
    assert lines[0] == "weights: done before"
    records = read(path)["ort-default"]
    assert records[: len(kept["ort-default"])] == kept["ort-default"]
    assert records[-1]["outcome"] == "done"


def test_stages_that_the_budget_or_the_kit_forbids_say_so(kit: Path, tmp_path: Path) -> None:
    check(kit, tmp_path, "--stages", "ort-default", "torch", "--budget-seconds", "100")
    records = read(tmp_path / "out" / "records.jsonl")
    assert records["ort-default"][-1]["reason"] == "the stage weights is not run"
    assert "s of the budget are left, it needs 120" in records["torch-compiled"][-1]["reason"]


def test_weights_that_differ_are_refused(kit: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "kit"
    shutil.copytree(kit, copy)
    path = copy / "content" / "kit.json"
    facts = json.loads(path.read_text())
    facts["first_mb_sha256"]["denoiser/model.onnx.data"] = "0" * 64
    path.write_text(json.dumps(facts))
    check(copy, tmp_path, "--stages", "weights")
    last = read(tmp_path / "out" / "records.jsonl")["weights"][-1]
    assert last["outcome"] == "failed"
    assert "denoiser/model.onnx.data: first MB has sha256" in last["reason"]


def test_stages_are_named_and_ordered() -> None:
    names = [stage.name for stage in STAGES]
    assert len(set(names)) == len(names)
    first = {
        word: next(i for i, n in enumerate(names) if n.startswith(word)) for word in ("facts", "ort", "rtx")
    }
    assert first["facts"] < first["ort"] < first["rtx"]
    assert names[-3:] == ["torch-eager", "torch-channels_last", "torch-compiled"]
    assert [stage.name for stage in choose(["rtx"])] == ["rtx-tiny", "rtx-build", "rtx-plain", "rtx-captured"]
    with pytest.raises(ValueError, match="there is no stage speeed"):
        choose(["speeed"])
