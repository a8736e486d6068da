"""A hostile file, and the reader that must refuse it or read it right."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ReaderName = Literal[
    "image", "depth", "recipe", "embedding", "lora", "checkpoint", "folder", "manifest", "result"
]

EXIT_CODES: dict[ReaderName, int] = {
    "image": 2,
    "depth": 2,
    "recipe": 2,
    "embedding": 2,
    "lora": 2,
    "checkpoint": 3,
    "folder": 3,
    "manifest": 3,
    "result": 2,
}
"""Exit codes of each reader's refusals."""


@dataclass(frozen=True, slots=True)
class Case:
    """One hostile file."""

    group: str
    name: str
    reader: ReaderName
    make: Callable[[Path], Path]
    """Writes the file into an empty folder; returns the path to read."""
    may_be_read: bool = False
    """The file need not be refused."""


def written(name: str, content: bytes | Callable[[], bytes], *, grown_to: int = 0) -> Callable[[Path], Path]:
    """Make a file with this content, followed by zeros that take no room on disk.

    Large contents are functions, called when the file is made.
    """

    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content() if callable(content) else content)
        if grown_to > path.stat().st_size:
            os.truncate(path, grown_to)
        return path

    return make


Cases = Iterator[Case]
