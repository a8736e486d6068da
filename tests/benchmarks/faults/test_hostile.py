"""A sample of the hostile files, and the search's own judgement."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.faults import hostile
from benchmarks.faults.hostile_files import pickles, pictures, weights
from benchmarks.faults.hostile_files.case import EXIT_CODES, Case, written
from benchmarks.faults.hostile_files.folders import Folders
from benchmarks.faults.hostile_reader import HostileReader

SAMPLE = 12


@pytest.fixture(scope="module")
def reader() -> Iterator[HostileReader]:
    with HostileReader() as made:
        yield made


def faults(reader: HostileReader, cases: list[Case], scratch: Path) -> list[object]:
    assert cases
    found = [hostile.run_file(reader, case, scratch) for case in cases]
    return [outcome for outcome in found if outcome[0] != "held"]


FILES: dict[str, Callable[[], Iterator[Case]]] = {
    "code": pickles.with_code,
    "claims": pickles.with_claims,
    "headers": lambda: weights.headers(0, 10),
    "pictures": lambda: pictures.damaged(1, 100),
    "texts": lambda: pictures.texts(0, 10),
}


@pytest.mark.parametrize("kind", FILES)
def test_files(kind: str, reader: HostileReader, tmp_path: Path) -> None:
    every = list(FILES[kind]())
    assert len({case.name for case in every}) == len(every)
    assert faults(reader, every[:: max(len(every) // SAMPLE, 1)], tmp_path) == []


@pytest.mark.parametrize("kind", ["json_files", "claims", "devices"])
def test_folders(
    kind: str, reader: HostileReader, tmp_path: Path, small_checkpoint: Path, small_bundle: Path
) -> None:
    made = Folders(small_checkpoint, small_bundle)
    every = list(getattr(made, kind)())
    assert faults(reader, every[:: max(len(every) // SAMPLE, 1)], tmp_path) == []


def test_judgement(reader: HostileReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that cannot fail proves nothing."""
    picture = pictures.png(4, 4)
    right, empty = written("a.png", picture), written("a.png", b"")

    def outcome(case: Case) -> str:
        return hostile.run_file(reader, case, tmp_path)[0]

    assert outcome(Case("pictures", "intact", "image", right)) == "wrong"
    assert outcome(Case("pictures", "intact", "image", right, may_be_read=True)) == "held"
    assert outcome(Case("pictures", "empty", "image", empty)) == "held"
    # A LoRA's refusal has another code than a checkpoint's.
    monkeypatch.setitem(EXIT_CODES, "image", 3)
    assert outcome(Case("pictures", "empty", "image", empty)) == "exit 1"
    monkeypatch.undo()

    def marked(folder: Path) -> Path:
        (folder / pickles.MARKER).touch()
        return empty(folder)

    assert outcome(Case("pickles with code", "it ran", "image", marked)) == "wrong"
    monkeypatch.setattr(hostile, "LIMIT_BYTES", -1)
    assert outcome(Case("pictures", "intact", "image", right, may_be_read=True)) == "memory"
    monkeypatch.setattr(hostile, "LIMIT_SECONDS", 0.1)
    assert reader._child is not None
    reader._child.send_signal(signal.SIGSTOP)
    assert outcome(Case("pictures", "intact", "image", right, may_be_read=True)) == "hang"


def test_pictures_are_the_same_for_a_seed() -> None:
    first, again = ([case.name for case in itertools.islice(pictures.damaged(3, 50), 50)] for _ in range(2))
    assert first == again
