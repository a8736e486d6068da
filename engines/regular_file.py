"""Open files that a caller names, or that lie in a folder from elsewhere, without waiting and up to a limit.

``open()`` waits at a named pipe without a writer, and reading a device need not end. Files are opened without
waiting and examined by their descriptor: a link is followed, and what it leads to must be a regular file.
"""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import time
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_WRITER_SECONDS = 5.0
"""Time for a pipe's writer to open it: both ends may be started together."""
_POLL_MS = 20


def open_regular(path: str | os.PathLike[str], limit: int | None = None) -> io.BufferedReader:
    """Open a regular file of at most ``limit`` bytes for reading.

    Raises:
        OSError: it is missing, is unreadable, is a folder, pipe or device, or is larger; ``strerror`` states which.
    """
    descriptor = _open(path)
    try:
        status = os.fstat(descriptor)
        _refuse_folder(status)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if limit is not None and status.st_size > limit:
            raise _too_large(limit)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a whole regular file of at most ``limit`` bytes. Raises OSError like :func:`open_regular`."""
    with open_regular(path, limit) as file:
        # A file can grow, and files of /proc have the size 0.
        content = file.read(limit + 1)
    if len(content) > limit:
        raise _too_large(limit)
    return content


def check_regular(path: str | os.PathLike[str], limit: int | None = None) -> None:
    """Check a file that a library opens by its path. Raises OSError like :func:`open_regular`."""
    open_regular(path, limit).close()


def open_regular_or_pipe(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file, or a pipe such as the shell's ``<(command)``.

    The caller limits what it reads: a pipe need not end.

    Raises:
        OSError: it is missing, is unreadable, or is a folder or device; reading raises it if no process opens the
            pipe for writing within 5 seconds.
    """
    descriptor = _open(path)
    try:
        status = os.fstat(descriptor)
        _refuse_folder(status)
        if stat.S_ISREG(status.st_mode):
            return os.fdopen(descriptor, "rb")
        if not stat.S_ISFIFO(status.st_mode):
            raise OSError(errno.EINVAL, "neither a regular file nor a pipe")
        return cast(BinaryIO, io.BufferedReader(_Pipe(descriptor)))
    except BaseException:
        os.close(descriptor)
        raise


class _Pipe(io.RawIOBase):
    """The reading end of a pipe; owns its descriptor, which does not block."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._deadline = time.monotonic() + _WRITER_SECONDS
        self._has_writer = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while True:
            try:
                count = os.readv(self._descriptor, [buffer])
            except BlockingIOError:
                # A process has the pipe open, and may take its time.
                self._has_writer = True
                self._poll.poll()
                continue
            # Without data this is the end, or no process has opened the pipe yet; then there is no event either.
            if count or self._has_writer:
                self._has_writer = True
                return count
            if self._poll.poll(_POLL_MS):
                self._has_writer = True
            elif time.monotonic() > self._deadline:
                raise OSError(errno.EPIPE, "no process writes to this pipe")

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def _open(path: str | os.PathLike[str]) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def _refuse_folder(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def _too_large(limit: int) -> OSError:
    return OSError(errno.EFBIG, f"larger than {limit} bytes")
