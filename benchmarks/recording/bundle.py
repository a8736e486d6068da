"""The bundle that a benchmark measures: ``--bundle``, or a freshly built demo."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.recording import process


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Add ``--bundle``."""
    parser.add_argument("--bundle", help="bundle to measure; default: build the demo")


@contextmanager
def bundle_or_demo(bundle: str | None) -> Iterator[str]:
    """Yield ``bundle``; if it is None, build the demo in a temporary folder with a separate cache.

    Raises:
        CommandError: the demo could not be built.
    """
    if bundle is not None:
        yield bundle
        return
    with tempfile.TemporaryDirectory(prefix="sd2rt-benchmark-") as name:
        scratch = Path(name)
        os.environ["SD2RT_CACHE_DIR"] = str(scratch / "cache")
        yield str(build_demo(scratch))


def build_demo(scratch: Path) -> Path:
    """Build the demo's bundle in ``scratch`` and return its path.

    Raises:
        CommandError: the demo could not be built.
    """
    path = scratch / "demo"
    process.measure(process.sd2rt("build", "demo", "-o", path), process.environment(scratch))
    return path
