"""A work folder for checkpoints and bundles, with a check of free disk space."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def add_workdir(parser: argparse.ArgumentParser) -> None:
    """Add ``--workdir``."""
    parser.add_argument(
        "--workdir", type=Path, help="parent of the work folder; default: the system's temporary folder"
    )


@contextmanager
def work_folder(
    benchmark: str, parent: Path | None, needed_bytes: int, *, keep: bool = False
) -> Iterator[Path]:
    """Create a folder in ``parent`` (default: the system's temporary folder) and remove it unless ``keep``.

    Raises:
        SystemExit: the disk has less than ``needed_bytes`` free.
    """
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"sd2rt-{benchmark}-", dir=parent))
    try:
        require_disk(folder, needed_bytes)
        yield folder
    finally:
        if keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)


def require_disk(folder: Path, needed_bytes: int) -> None:
    """Exit if the disk of ``folder`` has less than ``needed_bytes`` free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        sys.exit(
            f"needs {needed_bytes / 1e9:.0f} GB of disk, {free / 1e9:.1f} GB are free: choose another --workdir"
        )
