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
