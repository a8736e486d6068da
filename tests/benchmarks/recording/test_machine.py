"""A result records if measured code was changed since its commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks.recording import machine


@pytest.mark.parametrize(
    ("path", "dirty"),
    [
        ("engines/bundle/reader.py", True),
        ("runtime/rng/select.py", True),
        ("src/sd2rt/__init__.py", True),
        ("benchmarks/bench.py", True),
        ("benchmarks/scaling/point.py", True),
        ("benchmarks/results/2026-01-01-bench.json", False),
        ("docs/decisions.md", False),
    ],
)
def test_changed_sources_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, dirty: bool
) -> None:
    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text("changed")
    assert machine.commit()["dirty"] == dirty
