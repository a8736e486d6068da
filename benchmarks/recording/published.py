"""Options and commands of benchmarks that loop over the published checkpoints, with random weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sd2rt.export.checkpoints.variants import SUPPORTED, PublishedCheckpoint, find_variant


def add_published(parser: argparse.ArgumentParser) -> None:
    """Add ``--variants`` and ``--small``."""
    names = [row.name for row in SUPPORTED]
    parser.add_argument("--variants", nargs="+", choices=names, default=names, metavar="VARIANT")
    parser.add_argument("--small", action="store_true", help="tiny networks, to try the script")


def published(options: argparse.Namespace) -> list[PublishedCheckpoint]:
    """The checkpoints of ``--variants``."""
    return [find_variant(name) for name in options.variants]


def write_command(row: PublishedCheckpoint, folder: Path, *, small: bool) -> list[str]:
    """Command line that writes a checkpoint of random weights, in full size unless ``small``."""
    configs = f"small-{row.kind}" if small else str(row.configs)
    return [sys.executable, "-m", "benchmarks.checkpoint", str(folder), "--configs", configs]
