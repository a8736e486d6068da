"""Folders with copies of a replaced bundle's files, used while a part is loaded from them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.bundle.schema import File
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
    remove_abandoned()
    folder, lock = _locked_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_abandoned() -> None:
    """Remove the private folders of processes that have died; ignores errors."""
    with contextlib.suppress(OSError, BundleError):
        for folder in _root().iterdir():
            with contextlib.suppress(OSError):
                lock = _lock(folder)
                if lock is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(lock)


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


def _locked_folder() -> tuple[Path, int]:
    root = _root()
    root.mkdir(parents=True, exist_ok=True)
    while True:
        folder = root / os.urandom(8).hex()
        folder.mkdir(0o700)
        # Another process may take it for abandoned before it is locked.
        with contextlib.suppress(FileNotFoundError):
            lock = _lock(folder)
            if lock is not None:
                return folder, lock


def _lock(folder: Path) -> int | None:
    """Lock a folder until the descriptor is closed or the process dies; None if another process has it."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), folder.lstat()):
            return descriptor
    except BlockingIOError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
