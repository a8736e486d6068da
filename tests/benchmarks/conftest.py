"""Benchmarks are run as processes, whose modules are compiled once for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def compiled_modules(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> str:
    base = tmp_path_factory.getbasetemp()
    # A worker's folder is in that of the session which started it.
    session = base.parent if hasattr(request.config, "workerinput") else base
    return str(session / "compiled")


@pytest.fixture(scope="module")
def compiled_once(compiled_modules: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPYCACHEPREFIX", compiled_modules)
        yield
