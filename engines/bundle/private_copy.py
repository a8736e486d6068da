"""Folders with copies of a replaced bundle's files, used while a part is loaded from them."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.bundle.schema import File
from sd2rt.engines.bundle.temporary import sweep, temporary_folder
from sd2rt.engines.errors import BundleError

_CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Yield an empty folder in the cache directory, which is removed afterwards.

    A killed process may leave its folder to :func:`remove_abandoned`.

    Raises:
        OSError: it cannot be created.
        BundleError: there is no cache directory.
    """
    root = _root()
    root.mkdir(parents=True, exist_ok=True)
    with temporary_folder(root / "bundle") as folder:
        yield folder


def remove_abandoned() -> None:
    """Remove the private folders of processes that have died; ignores errors."""
    # There may be no cache directory.
    with contextlib.suppress(BundleError):
        sweep(_root())


def copy_to(folder: Path, file: File, descriptor: int) -> str:
    """Copy an open file to its path in a folder, and return the SHA-256 of the copy.

    Raises:
        OSError: it cannot be read or written.
    """
    target = folder / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    sha256, position = hashlib.sha256(), 0
    with target.open("wb", buffering=0) as copy:
        while block := os.pread(descriptor, _CHUNK_BYTES, position):
            sha256.update(block)
            position += len(block)
            rest = memoryview(block)
            while rest:
                rest = rest[copy.write(rest) :]
    return sha256.hexdigest()


def _root() -> Path:
    return cache_dir() / "replaced"
