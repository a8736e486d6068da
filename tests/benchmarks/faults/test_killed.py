"""Commands that are killed at a file operation, few of those that `python -m benchmarks.faults kill` counts."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.faults.killed import Workplace, half_files, leftovers, run_command

FAST = ("--steps", "1", "--threads", "1", "--seed", "5")


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path / "place")


def images(place: Workplace) -> list[Path]:
    return sorted(place.folder("out").glob("[!.]*"))


def test_runs_while_they_save(place: Workplace, small_bundle: Path) -> None:
    """Killed at each of their last operations, which name the image and remove its temporary name."""
    words = ("run", small_bundle, "a", *FAST, "--output", place.folder("out"))
    whole = run_command(place, *words)
    assert whole.code == 0, whole.err
    # The second run finds receipts, and only saves.
    operations = run_command(place, *words).operations
    assert operations >= 4
    for operation in range(operations - 3, operations + 1):
        killed = run_command(place, *words, at_operation=operation)
        assert killed.code == -signal.SIGKILL
        assert half_files(place) == []
    ended = run_command(place, *words)
    assert ended.code == 0, ended.err
    assert half_files(place) == leftovers(place) == []
    first, *others = (np.asarray(Image.open(path)) for path in images(place))
    assert len(others) >= 2
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_prepare(place: Workplace, small_bundle: Path, number: signal.Signals) -> None:
    words = ("prepare", small_bundle, "--part", "decoder")
    ended = run_command(place, *words, number=number, at_operation=9)
    assert ended.code == (-9 if number == signal.SIGKILL else 143)
    assert half_files(place) == []
    left = [path for path in leftovers(place) if "prepared" in path]
    assert bool(left) == (number == signal.SIGKILL)
    # The next command that reads there removes them too.
    ended = run_command(place, "run", small_bundle, "a", *FAST)
    assert ended.code == 0, ended.err
    assert leftovers(place) == []


def test_plot(place: Workplace) -> None:
    words = ("samplers", "euler", "--plot", place.folder("out") / "a.png")
    for operation in (1, 2, 3):
        assert run_command(place, *words, at_operation=operation).code == -signal.SIGKILL
        assert images(place) == []
    assert run_command(place, *words).code == 0
    assert half_files(place) == leftovers(place) == []
    assert [path.name for path in images(place)] == ["a.png"]
