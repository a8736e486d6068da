"""A lock between processes that the kernel lets go of when its holder dies."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class FileLock:
    """An exclusive ``flock`` on a file that exists only while it is held, or after its holder was killed.

    The base install has this much, so that a reader can tell whether a build is running.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock without waiting; false where another process, or another lock of this one, has it.

        Raises:
            OSError: the file cannot be made.
        """
        import fcntl

        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current(descriptor):
                    self._descriptor = descriptor
                    return True
            except BlockingIOError:
                return False
            finally:
                if self._descriptor is None:
                    os.close(descriptor)

    def _is_current(self, descriptor: int) -> bool:
        """Whether the path still leads to what was locked: its last holder removes the file."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.lstat(self._path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let go of the lock and remove its file; nothing happens where it is not held."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(descriptor)
