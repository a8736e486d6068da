"""A worker that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sd2rt.runtime.server.worker_settings import WorkerSettings

from .serving import Serving, serve


@pytest.fixture(scope="module")
def small(small_bundle: Path) -> Iterator[Serving]:
    """Serves the small bundle on one thread, for the tests of a module that leave the worker alive."""
    with serve(WorkerSettings(bundles={"small": str(small_bundle)}, threads=1, max_images=32)) as serving:
        yield serving
