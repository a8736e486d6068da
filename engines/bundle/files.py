"""Atomic writes of files and folders, file hashes, and manifest entries of files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from sd2rt.engines.bundle.file_lock import FileLock
from sd2rt.engines.bundle.schema import File
from sd2rt.engines.bundle.temporary import temporary_file, temporary_folder, temporary_name, was_written
from sd2rt.engines.regular_file import open_regular

_CHUNK_BYTES = 1 << 20
_NO_LINKS = {
    errno.EPERM,
    errno.EACCES,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EMLINK,
    errno.EINVAL,
}
"""Errors of file systems that have no hard links."""
_NUMPY_FULL = ("Not enough free space to write", "requested and")


def sha256(path: Path, progress: Callable[[int], None] = lambda read: None) -> str:
    """SHA-256 of a file, in hexadecimal; calls ``progress`` with the number of bytes of each block."""
    with open_regular(path) as file:
        return sha256_of_open(file.fileno(), progress)


def sha256_of_open(descriptor: int, progress: Callable[[int], None]) -> str:
    """SHA-256 of an open file like :func:`sha256`; several threads may read the descriptor at once."""
    digest, position = hashlib.sha256(), 0
    block = memoryview(bytearray(_CHUNK_BYTES))
    while read := os.preadv(descriptor, [block], position):
        digest.update(block[:read])
        position += read
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
    temporary one is removed; the next writer in the folder removes that of a killed process.

    Args:
        durable: flush to disk first, so that the file is complete even after a power cut.
        keep_mode: copy the permissions of the replaced file.

    Raises:
        OSError: the file cannot be written, or the block did not write it.
    """
    with temporary_file(path) as temporary:
        yield temporary
        _check_written(temporary)
        if keep_mode:
            shutil.copymode(path, temporary)
        if durable:
            sync(temporary)
        temporary.replace(path)


def write_new(paths: Iterable[Path], write: Callable[[Path], None]) -> Path:
    """Write a file atomically under the first of ``paths``, all in one folder, that is free; replaces nothing.

    Two processes never take the same name.

    Args:
        write: writes the file at a given path.

    Returns:
        The path that was taken.

    Raises:
        FileExistsError: none is free.
        OSError: the file cannot be written.
    """
    paths = iter(paths)
    first = next(paths)
    with temporary_file(first) as temporary:
        write(temporary)
        _check_written(temporary)
        for path in chain((first,), paths):
            if _take_name(temporary, path):
                return path
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(first))


def _check_written(temporary: Path) -> None:
    if not was_written(temporary):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(temporary))


def _take_name(temporary: Path, path: Path) -> bool:
    """Give a file the name ``path`` too; returns False if that exists."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    else:
        return True
    # Renaming would replace. The lock keeps other processes of sd2rt away between the check and the renaming.
    lock = FileLock(temporary_name(path, bytes(3)))
    if not lock.acquire():
        return False
    try:
        if os.path.lexists(path):
            return False
        temporary.rename(path)
    finally:
        lock.release()
    return True


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``, which replaces ``path`` if the block succeeds.

    The old folder is moved aside and removed. If another process creates ``path`` meanwhile, its folder is kept and
    the new one discarded. After an error the temporary folder is removed; the next writer in the same parent folder
    removes that of a killed process.
    """
    with temporary_folder(path) as unfinished:
        yield unfinished
        aside = _set_aside(path)
        try:
            unfinished.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder, if there is one; a killed process leaves nothing half removed at ``path``.

    Raises:
        OSError: it cannot be removed.
    """
    aside = _set_aside(path)
    if os.path.lexists(aside):
        shutil.rmtree(aside)


def _set_aside(path: Path) -> Path:
    """Rename a folder, if there is one, to a name from which the next writer removes it; returns that."""
    aside = temporary_name(path, os.urandom(3))
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(path.lstat().st_mode):
            path.replace(aside)
    return aside


def is_disk_full(error: OSError) -> bool:
    """Return whether an error reports a full disk or an exceeded quota.

    NumPy writes arrays in C, and reports both a short write and a failed reservation without an errno.
    """
    if error.errno is None:
        return any(words in str(error) for words in _NUMPY_FULL)
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
