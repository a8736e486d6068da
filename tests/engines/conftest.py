from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from .paper_bundle import OLD, make_bundle


@pytest.fixture(scope="session")
def paper_master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("paper") / "bundle"
    make_bundle(target, OLD)
    return target


@pytest.fixture
def paper(paper_master: Path, tmp_path: Path) -> Path:
    """A tiny bundle for one test."""
    target = tmp_path / "shelf" / "bundle"
    shutil.copytree(paper_master, target)
    return target


@pytest.fixture
def lazy_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip fsync for speed: a killed process, unlike a power cut, loses nothing that it has written."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
