"""A folder for checkpoints and bundles of many gigabytes, and the disk that they need."""

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
    parser.add_argument("--workdir", type=Path, help="where the files go; a temporary folder if left out")


@contextmanager
def work_folder(
    benchmark: str, parent: Path | None, needed_bytes: int, *, keep: bool = False
) -> Iterator[Path]:
    """Make a folder in ``parent``, the system's temporary one if that is None, and remove it unless ``keep``.

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
    """End the command where the disk of ``folder`` has less than ``needed_bytes`` free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        sys.exit(f"this needs {needed_bytes / 1e9:.0f} GB of disk, {free / 1e9:.1f} are free: give --workdir")
