"""Files and folders written whole or not at all, their hashes, and how a manifest describes them."""

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

_CHUNK_BYTES = 1 << 20
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{6}\.part")


def sha256(path: Path, progress: Callable[[int], None] = lambda read: None) -> str:
    """SHA-256 of a file, in hexadecimal; ``progress`` hears the bytes of each block read."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(block):
            digest.update(block[:read])
            progress(read)
    return digest.hexdigest()


def describe(bundle: Path, path: str) -> File:
    """The manifest's entry for a file of the bundle that has been written."""
    file = bundle / path
    return File(path=path, size=file.stat().st_size, sha256=sha256(file))


def sync(path: Path) -> None:
    """Have the disk hold all of a file, or the names in a folder, before anything else is done."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = False, keep_mode: bool = False) -> Iterator[Path]:
    """A name beside ``path`` to write a file under, which takes its place when the block ends without an error.

    Readers find the old file or the new one, never half of one; an error leaves the old one and nothing else. A kill
    may leave the temporary file: see :func:`temporary_of`.

    Args:
        durable: wait for the disk, so that a power cut leaves a whole file too.
        keep_mode: give the new file the permissions of the one that it replaces.
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
        # What is to be told is the error that came first.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _temporary(path: Path) -> Path:
    # Not the process's number: containers that share a cache have the same ones.
    return path.with_name(f".{path.name}.{os.urandom(3).hex()}.part")


def temporary_of(name: str) -> str | None:
    """The name that a temporary file or folder of this module was to take; None for any other name."""
    match = _TEMPORARY.fullmatch(name)
    return None if match is None else match[1]


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder beside ``path``, which takes its place when the block ends without an error.

    What was there is removed. Where another process's folder has come there since, that one stays. An error leaves
    nothing; a kill may leave the temporary folder: see :func:`temporary_of`.
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
