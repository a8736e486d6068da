"""Interprocess file lock, released by the kernel if its holder dies."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class FileLock:
    """Exclusive ``flock`` on a file that exists only while the lock is held, or after its holder was killed.

    Readers use it too, to tell whether a build is running.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock without waiting; returns False if another ``FileLock``, in any process, holds it.

        Raises:
            OSError: the lock file cannot be created.
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
        """Return whether the path is still the locked file; its previous holder may have removed it."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.lstat(self._path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Release the lock and remove its file; does nothing if the lock is not held."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(descriptor)
