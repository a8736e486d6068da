"""Benchmarks run as processes that share one folder of compiled modules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def compiled_modules(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> str:
    base = tmp_path_factory.getbasetemp()
    # With pytest-xdist, a worker's folder is inside the session's.
    session = base.parent if hasattr(request.config, "workerinput") else base
    return str(session / "compiled")


@pytest.fixture(scope="module")
def compiled_once(compiled_modules: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPYCACHEPREFIX", compiled_modules)
        yield
