"""A Hub on this machine, commands that use it, and bundles for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..paper_bundle import make_bundle
from .hub_server import LocalHub, start
from .machine import Machine

_LARGE_PART = 3_000_000


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    state = LocalHub()
    server = start(state)
    yield state
    for _, _, go_on in state.stop_after.values():
        go_on.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def machine(hub: LocalHub, tmp_path: Path) -> Machine:
    home = tmp_path / "machine"
    home.mkdir()
    return Machine(home, hub)


@pytest.fixture
def make_machine(hub: LocalHub, tmp_path: Path) -> Callable[[str], Machine]:
    def make(name: str) -> Machine:
        home = tmp_path / name
        home.mkdir()
        return Machine(home, hub)

    return make


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with parts of three megabytes each, in no cache."""
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "builder"))
    make_bundle(tmp_path / "paper", part_bytes=_LARGE_PART)
    return tmp_path / "paper"
