"""Temporary files and folders: whose process lives stays, whose process was killed goes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from sd2rt.engines.bundle.temporary import (
    scratch_folder,
    sweep,
    temporary_file,
    temporary_folder,
    temporary_of,
)

KINDS = {"file": temporary_file, "folder": temporary_folder}

HOLDING = """
import os, signal, sys
from pathlib import Path
from sd2rt.engines.bundle.temporary import temporary_file, temporary_folder
with temporary_{kind}(Path({target!r})) as path:
    path.write_text("half") if path.is_file() else (path / "half").touch()
    print(path, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_killed_process(kind: str, tmp_path: Path) -> None:
    """Kept while its process lives, removed by the next writer of any name once that is dead."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING.format(kind=kind, target=str(tmp_path / "a.json"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        held = Path(child.stdout.readline().strip())
        assert temporary_of(held.name) == "a.json"
        sweep(tmp_path)
        with temporary_file(tmp_path / "b"), temporary_folder(tmp_path / "c"):
            assert held.exists()
        assert held.exists()
        child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert names(tmp_path) == [held.name]
    with temporary_file(tmp_path / "b") as other:
        assert names(tmp_path) == [other.name]
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", KINDS)
def test_own_are_held(kind: str, tmp_path: Path) -> None:
    with KINDS[kind](tmp_path / "a") as path:
        sweep(tmp_path)
        assert names(tmp_path) == [path.name]
    assert names(tmp_path) == []


def test_other_names_stay(tmp_path: Path) -> None:
    kept = ["part", ".a.part", "a.abcdef.part", ".a.abcde.part", ".a.abcdeg.part", ".a.abcdef.part.png", ".a"]
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    (tmp_path / ".link.abcdef.part").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / ".pipe.abcdef.part")
    before = names(tmp_path)
    (tmp_path / ".dead.abcdef.part").touch()
    sweep(tmp_path)
    assert names(tmp_path) == before
    assert names(tmp_path / "elsewhere") == ["file"]


def test_missing_folder(tmp_path: Path) -> None:
    sweep(tmp_path / "missing")
    with pytest.raises(FileNotFoundError), temporary_file(tmp_path / "missing" / "a"):
        pass


def test_many_writers_and_sweepers_at_once(tmp_path: Path) -> None:
    """No writer loses its file or folder to another's sweep."""
    failures: list[Any] = []

    def work(number: int) -> None:
        try:
            for turn in range(40):
                kind: AbstractContextManager[Path] = KINDS["folder" if turn % 2 else "file"](tmp_path / "a")
                with kind as path:
                    target = path / "x" if turn % 2 else path
                    target.write_text(f"{number}")
                    assert target.read_text() == f"{number}"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert names(tmp_path) == []


@pytest.mark.parametrize("chosen", ["tempdir", "TMPDIR"])
def test_scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    if chosen == "tempdir":
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    else:
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / ".sd2rt-bench.abcdef.part").mkdir()
    with scratch_folder("bench") as folder:
        assert names(tmp_path) == [folder.name]
        assert folder.stat().st_mode & 0o777 == 0o700
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", KINDS)
def test_interrupt_during_the_removal(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupts = iter([True])

    def interrupted(real: Any) -> Any:
        def remove(*arguments: Any, **options: Any) -> None:
            if next(interrupts, False):
                raise KeyboardInterrupt
            real(*arguments, **options)

        return remove

    monkeypatch.setattr(Path, "unlink", interrupted(Path.unlink))
    monkeypatch.setattr(shutil, "rmtree", interrupted(shutil.rmtree))
    with pytest.raises(KeyboardInterrupt), KINDS[kind](tmp_path / "a"):
        pass
    assert names(tmp_path) == []
