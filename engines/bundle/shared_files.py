"""Deduplication of files between bundles, by hard links to ``objects/<sha256>`` in the cache directory.

Every large file of a bundle is also linked there. Another bundle with the same file links to that object instead of
storing a copy. Nothing depends on the store: bundles stay complete if it is removed, and if links are impossible
(another disk, no permission, no cache) each bundle has its own copies.

Concurrent builds need no lock, and may be killed at any point: links in the store are created and removed atomically,
a bundle's file is replaced atomically by a link to the same contents, and removing a link never affects the other
links to the file. At worst, a race between builds leaves a file unshared.

Shared files stay writable like all files of a bundle, because copies of a bundle keep the modes and may be edited.
Writing into a shared file changes it in every bundle; opening any of them then reports a wrong hash.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.bundle.files import sha256
from sd2rt.engines.bundle.schema import File
from sd2rt.engines.errors import BundleError

SHARED_FROM_BYTES = 1_000_000
"""Minimum size of shared files; smaller ones are not worth it."""

_NAME = re.compile(r"[0-9a-f]{64}")


def share(bundle: Path, file: File) -> None:
    """Replace a file of an unfinished bundle with a link to the stored object, or store it; never fails.

    ``file`` must match the file's contents. A stored object is hashed again before it is linked to, and replaced
    if it is damaged. The new link changes the object's ctime and so invalidates its receipts in other bundles
    (:mod:`sd2rt.engines.bundle.reader`): their next opening hashes the file again.
    """
    if file.size < SHARED_FROM_BYTES:
        return
    with contextlib.suppress(OSError, BundleError):
        path, stored = bundle / file.path, _object_path(file)
        stored.parent.mkdir(parents=True, exist_ok=True)
        # Twice: if another build stores the same object meanwhile, the second attempt links to it.
        for _ in range(2):
            if _link_stored(stored, path, file):
                return
            with contextlib.suppress(FileExistsError):
                os.link(path, stored, follow_symlinks=False)
                return


def take_shared(bundle: Path, file: File) -> bool:
    """Link a stored object to the place of a missing file of an unfinished bundle; returns False if there is none.

    The object is hashed before it is used.
    """
    if file.size < SHARED_FROM_BYTES:
        return False
    path = bundle / file.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(_object_path(file), path, follow_symlinks=False)
    except (OSError, BundleError):
        return False
    try:
        status = path.lstat()
        # Of another user or mode: the copy that is fetched is this user's own.
        if status.st_uid == os.geteuid() and _is_intact(path, file):
            return True
    except OSError:
        pass
    path.unlink(missing_ok=True)
    return False


def prune() -> None:
    """Remove the stored objects that no bundle links to; ignores errors.

    If a build links to an object at the same moment, its bundle keeps the file; only the stored link is lost.
    """
    with contextlib.suppress(OSError, BundleError):
        for path in _folder().iterdir():
            with contextlib.suppress(OSError):
                if _NAME.fullmatch(path.name) and path.lstat().st_nlink == 1:
                    path.unlink()


def shared_bytes(bundle: Path, files: Iterable[File]) -> int:
    """Number of bytes of a bundle that are shared with other bundles; missing files count as unshared."""
    statuses: list[tuple[File, os.stat_result]] = []
    for file in files:
        with contextlib.suppress(OSError):
            statuses.append((file, (bundle / file.path).lstat()))
    links = Counter((status.st_dev, status.st_ino) for _, status in statuses)
    return sum(
        file.size
        for file, status in statuses
        # More links than those of this bundle and of the store.
        if status.st_nlink > links[status.st_dev, status.st_ino] + _is_stored(file, status)
    )


def _folder() -> Path:
    return cache_dir() / "objects"


def _object_path(file: File) -> Path:
    return _folder() / file.sha256


def _is_stored(file: File, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(status, _object_path(file).lstat())
    except (OSError, BundleError):
        return False


def _link_stored(stored: Path, path: Path, file: File) -> bool:
    """Replace ``path`` with a link to the stored object; returns False if there is no valid object."""
    status = path.lstat()
    try:
        stored_status = stored.lstat()
    except FileNotFoundError:
        return False
    if os.path.samestat(status, stored_status) or not _same_access(status, stored_status):
        # Already linked, or not shareable.
        return True
    temporary = path.with_name(f".{path.name}.shared")
    temporary.unlink(missing_ok=True)
    try:
        # Link before verifying: nothing is read if links are impossible, and the verified file is the one kept.
        os.link(stored, temporary, follow_symlinks=False)
    except FileNotFoundError:
        return False
    try:
        if _is_intact(temporary, file):
            temporary.replace(path)
            return True
        # Remove the damaged object, unless another build has replaced it meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(temporary.lstat(), stored.lstat()):
                stored.unlink()
    finally:
        temporary.unlink(missing_ok=True)
    return False


def _same_access(status: os.stat_result, stored: os.stat_result) -> bool:
    """Return whether owner and mode are equal; a link would take those of the stored object.

    True if the object is not a regular file, which :func:`_is_intact` then rejects.
    """
    if not stat.S_ISREG(stored.st_mode):
        return True
    return (status.st_uid, status.st_gid, status.st_mode) == (stored.st_uid, stored.st_gid, stored.st_mode)


def _is_intact(path: Path, file: File) -> bool:
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_size == file.size and sha256(path) == file.sha256
