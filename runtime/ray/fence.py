"""The newest run of a batch is the only one that writes: workers of a killed one may live on for seconds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from sd2rt.engines.errors import EngineError

NAME = ".batch.run"


@contextlib.contextmanager
def newest_run(folder: Path) -> Iterator[str]:
    """Yield the token of a new run in a folder; from now on no other run writes to it.

    Waits for files that are being written. After the block none is written any more.

    Raises:
        OSError: the folder cannot be written.
    """
    path, token = folder / NAME, secrets.token_hex(16)
    _replace(path, token)
    try:
        yield token
    finally:
        with contextlib.suppress(OSError):
            _replace(path, "")
            path.unlink()


def _replace(path: Path, token: str) -> None:
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644), "r+") as file:
        # Writers hold the lock together, from their look at the token until their file has its name.
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate()
        file.write(token)


@contextlib.contextmanager
def writing(folder: Path, token: str) -> Iterator[None]:
    """Write files in the block, unless a newer run has started.

    Raises:
        EngineError: one has, or this one has ended.
        OSError: the folder cannot be read.
    """
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _displaced(folder) from None
    with open(descriptor) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        if file.read() != token:
            raise _displaced(folder)
        yield


def _displaced(folder: Path) -> EngineError:
    return EngineError(f"a newer batch writes to {folder}, or this one was ended: its images are not written")
