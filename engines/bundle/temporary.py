"""Temporary files and folders beside their targets; those of killed processes are removed by the next writer there.

Each is held by a lock on itself, which the kernel releases when its process dies: what nobody holds is a leftover.
Where a file system has no locks, leftovers stay.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_NAME = re.compile(r"\.(.+)\.[0-9a-f]{6}\.part")
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC
_UNWRITTEN_NS = 0
"""Modification time of a temporary file that nothing has been written to."""


def temporary_of(name: str) -> str | None:
    """Return the target name of a temporary file or folder of this module; None for other names."""
    match = _NAME.fullmatch(name)
    return None if match is None else match[1]


def temporary_name(target: Path, number: bytes) -> Path:
    """Path of a temporary file of ``target``; ``number`` has three bytes."""
    return target.with_name(f".{target.name}.{number.hex()}.part")


@contextlib.contextmanager
def temporary_file(target: Path) -> Iterator[Path]:
    """Yield the path of a new, empty file beside ``target``; it is removed after the block unless it was renamed."""
    with _held(target, _create_file, lambda path: path.unlink(missing_ok=True)) as path:
        yield path


@contextlib.contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside ``target``; it is removed after the block unless it was renamed."""
    with _held(target, _create_folder, lambda path: shutil.rmtree(path, ignore_errors=True)) as path:
        yield path


@contextlib.contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """Yield a new folder in the user's temporary folder; it is removed after the block.

    Those of the same name that killed processes left are removed first.
    """
    with temporary_folder(_users_temporary_folder() / f"sd2rt-{name}") as folder:
        yield folder


def _users_temporary_folder() -> Path:
    """The folder that ``tempfile`` would choose, without the file that it writes there as a test."""
    named = (tempfile.tempdir, *map(os.environ.get, ("TMPDIR", "TEMP", "TMP")), "/tmp", "/var/tmp")
    for folder in named:
        if folder and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            return Path(folder).absolute()
    return Path(tempfile.gettempdir())


def was_written(temporary: Path) -> bool:
    """Return whether a temporary file was opened for writing since its creation.

    Raises:
        FileNotFoundError: it was removed.
    """
    return temporary.lstat().st_mtime_ns != _UNWRITTEN_NS


def sweep(folder: Path) -> None:
    """Remove this user's temporary files and folders in ``folder`` that no process holds; ignores errors."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _NAME.fullmatch(entry.name)]
        for name in names:
            with contextlib.suppress(OSError):
                _remove_unheld(folder / name)


@contextlib.contextmanager
def _held(
    target: Path, create: Callable[[Path], int | None], remove: Callable[[Path], None]
) -> Iterator[Path]:
    sweep(target.parent)
    path, descriptor = None, None
    try:
        while descriptor is None:
            # Random rather than the process id: containers that share a cache may have equal ids.
            path = temporary_name(target, os.urandom(3))
            if not os.path.lexists(path):
                descriptor = _hold(path, create(path))
        assert path is not None
        yield path
    finally:
        if path is not None:
            try:
                _remove_quietly(path, remove)
            except KeyboardInterrupt:
                # Interrupted or terminated just here.
                _remove_quietly(path, remove)
                raise
        if descriptor is not None:
            os.close(descriptor)


def _remove_quietly(path: Path, remove: Callable[[Path], None]) -> None:
    # The first error is the one reported.
    with contextlib.suppress(OSError):
        remove(path)


def _create_file(path: Path) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666)
    os.utime(descriptor, ns=(_UNWRITTEN_NS, _UNWRITTEN_NS))
    return descriptor


def _create_folder(path: Path) -> int | None:
    path.mkdir(0o700)
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK)
    except FileNotFoundError:
        # Swept away by another process.
        return None


def _hold(path: Path, descriptor: int | None) -> int | None:
    """Lock a new file or folder; closes it and returns None if another process is sweeping it away."""
    if descriptor is None:
        return None
    if _lock(descriptor) is not False and _is_at(path, descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _lock(descriptor: int) -> bool | None:
    """Lock without waiting: True if locked, False if another process has it, None if there are no locks here."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _remove_unheld(path: Path) -> None:
    status = path.lstat()
    is_folder = stat.S_ISDIR(status.st_mode)
    if not (is_folder or stat.S_ISREG(status.st_mode)) or status.st_uid != os.geteuid():
        return
    # Without waiting, if it has become a pipe since.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _NO_LINK)
    try:
        if _lock(descriptor) and _is_at(path, descriptor):
            if is_folder:
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
    finally:
        os.close(descriptor)
