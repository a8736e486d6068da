"""`sd2rt bench` run from the source tree, which adds the commit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.recording import machine
from sd2rt.runtime.bench.comparison import compare, read_result

ROOT = Path(__file__).resolve().parents[2]
FAST = ("--steps", "2", "--threads", "1", "--repetitions", "1", "--no-first-image", "--quiet")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.bench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


def test_the_result_has_the_commit(tmp_path: Path, small_bundle: Path) -> None:
    path = tmp_path / "bench.json"
    ran = run(small_bundle, *FAST, "--output", path)
    assert ran.returncode == 0, ran.stderr
    result = read_result(path)
    assert {name: result["machine"][name] for name in ("commit", "dirty")} == machine.commit()
    *tables, line = ran.stdout.splitlines()
    printed = json.loads(line)
    assert any(row.startswith("it/s") for row in tables)
    # The file has everything that was printed.
    assert result == printed | {"machine": printed["machine"] | machine.commit()}
    # A different commit does not make two results incomparable.
    assert compare(result, printed)["differences"] == []


def test_errors_are_the_commands_own(tmp_path: Path) -> None:
    ran = run(tmp_path / "none", *FAST, "-o", tmp_path / "bench.json")
    assert (ran.returncode, ran.stdout) == (3, "")
    assert ran.stderr.startswith("sd2rt: ")
    assert ran.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_tree_that_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    assert machine.commit() == {"commit": None, "dirty": False}
