from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sd2rt.engines.bundle.file_lock import FileLock
from sd2rt.engines.bundle.recovery import recover, recover_abandoned

from ..paper_bundle import OLD, open_key

pytestmark = pytest.mark.usefixtures("lazy_disk")


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_old_bundle_that_stepped_aside_comes_back(paper: Path) -> None:
    aside = paper.parent / ".bundle.old"
    paper.rename(aside)
    recover_abandoned(paper)
    assert open_key(paper) == OLD
    assert contents(paper.parent) == {"bundle"}


def test_old_bundle_that_was_replaced_is_cleared_away(paper: Path) -> None:
    shutil.copytree(paper, paper.parent / ".bundle.old")
    recover(paper)
    assert contents(paper.parent) == {"bundle"}


def test_reader_leaves_a_running_build_alone(paper: Path) -> None:
    aside = paper.parent / ".bundle.old"
    lock = FileLock(paper.parent / ".bundle.lock")
    assert lock.acquire()
    paper.rename(aside)
    recover_abandoned(paper)
    assert aside.is_dir()
    assert not paper.exists()
    lock.release()


@pytest.mark.parametrize(
    "left", [(".bundle.old",), (".bundle.lock",), (".bundle.old", ".bundle.lock")], ids=str
)
def test_reader_clears_what_a_killed_build_left(paper: Path, left: tuple[str, ...]) -> None:
    """It was killed after its bundle had its name: the next build keeps that, and begins nothing."""
    if ".bundle.old" in left:
        shutil.copytree(paper, paper.parent / ".bundle.old")
    if ".bundle.lock" in left:
        (paper.parent / ".bundle.lock").touch()
    recover_abandoned(paper)
    assert contents(paper.parent) == {"bundle"}


def test_reader_leaves_the_lock_of_a_running_build(paper: Path) -> None:
    lock = FileLock(paper.parent / ".bundle.lock")
    assert lock.acquire()
    shutil.copytree(paper, paper.parent / ".bundle.old")
    recover_abandoned(paper)
    assert contents(paper.parent) == {"bundle", ".bundle.lock", ".bundle.old"}
    lock.release()
