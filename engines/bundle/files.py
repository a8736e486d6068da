"""Atomic writes of files and folders, file hashes, and manifest entries of files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from sd2rt.engines.bundle.schema import File
from sd2rt.engines.regular_file import open_regular

_CHUNK_BYTES = 1 << 20
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{6}\.part")


def sha256(path: Path, progress: Callable[[int], None] = lambda read: None) -> str:
    """SHA-256 of a file, in hexadecimal; calls ``progress`` with the number of bytes of each block."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(_CHUNK_BYTES))
    with open_regular(path) as file:
        while read := file.readinto(block):
            digest.update(block[:read])
            progress(read)
    return digest.hexdigest()


def describe(bundle: Path, path: str) -> File:
    """Create the manifest entry of a file in the bundle."""
    file = bundle / path
    return File(path=path, size=file.stat().st_size, sha256=sha256(file))


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = False, keep_mode: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; the file written there replaces ``path`` if the block succeeds.

    Readers see the complete old or new file, never a partial one. After an error the old file remains and the
    temporary one is removed. A killed process may leave the temporary file: see :func:`temporary_of`.

    Args:
        durable: flush to disk first, so that the file is complete even after a power cut.
        keep_mode: copy the permissions of the replaced file.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        if keep_mode:
            shutil.copymode(path, temporary)
        if durable:
            sync(temporary)
        temporary.replace(path)
    except BaseException:
        # Suppressed, so that the first error is the one reported.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _temporary(path: Path) -> Path:
    # Random rather than the process id: containers that share a cache may have equal ids.
    return path.with_name(f".{path.name}.{os.urandom(3).hex()}.part")


def temporary_of(name: str) -> str | None:
    """Return the target name of a temporary file or folder of this module; None for other names."""
    match = _TEMPORARY.fullmatch(name)
    return None if match is None else match[1]


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``, which replaces ``path`` if the block succeeds.

    The old folder is removed first. If another process then creates ``path``, its folder is kept and the new one
    discarded. After an error the temporary folder is removed; a killed process may leave it: see
    :func:`temporary_of`.
    """
    unfinished = _temporary(path)
    unfinished.mkdir(0o700)
    try:
        yield unfinished
        shutil.rmtree(path, ignore_errors=True)
        try:
            unfinished.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
