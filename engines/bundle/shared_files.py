"""Files that several bundles hold, stored once: hard links to ``objects/<sha256>`` in the cache directory.

Every large file of a bundle has a second name there. The next bundle that is to hold the same bytes gets a link to
them in the place of its own copy. Nothing depends on the store: a bundle stays whole where the store is removed, and
where links are impossible (another disk, no permission, no cache) each bundle has files of its own.

Builds may run side by side and be killed anywhere, and need no lock for it. A name in the store appears and goes in
one step, a file of a bundle is replaced in one step by a link to the same bytes, and removing a name never takes
bytes from a bundle that links to them. The worst that two builds can do to each other is not to share a file.

The files stay writable, as in any bundle: a copy of a bundle keeps its modes, and is there to be changed. Whoever
writes *into* a shared file changes it in all its bundles, and opening any of them then says so.
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
"""Smaller files are not worth a name in the store."""

_NAME = re.compile(r"[0-9a-f]{64}")


def share(bundle: Path, file: File) -> None:
    """Make a file of an unfinished bundle one with the store's, or the store's first; it never fails.

    ``file`` must be what the manifest says. A stored object is hashed again before it is linked to, and replaced
    where it is damaged. The new link changes the object's ctime, so the receipts of the other bundles that hold it
    (:mod:`sd2rt.engines.bundle.reader`) lapse: each is hashed once more at its next opening.
    """
    if file.size < SHARED_FROM_BYTES:
        return
    with contextlib.suppress(OSError, BundleError):
        path, stored = bundle / file.path, _object(file)
        stored.parent.mkdir(parents=True, exist_ok=True)
        # Twice, for another build may store the same bytes just now: the second time they are there.
        for _ in range(2):
            if _take(stored, path, file):
                return
            with contextlib.suppress(FileExistsError):
                os.link(path, stored, follow_symlinks=False)
                return


def prune() -> None:
    """Remove what no bundle links any more, as far as that can be done.

    A build that links to an object at this very moment keeps the bytes; they are no longer stored, that is all.
    """
    with contextlib.suppress(OSError, BundleError):
        for path in _folder().iterdir():
            with contextlib.suppress(OSError):
                if _NAME.fullmatch(path.name) and path.lstat().st_nlink == 1:
                    path.unlink()


def shared_bytes(bundle: Path, files: Iterable[File]) -> int:
    """How many bytes of a bundle are stored once for it and for others; what is missing counts as its own."""
    found: list[tuple[File, os.stat_result]] = []
    for file in files:
        with contextlib.suppress(OSError):
            found.append((file, (bundle / file.path).lstat()))
    own = Counter((status.st_dev, status.st_ino) for _, status in found)
    return sum(
        file.size
        for file, status in found
        # What is left beside the links of this bundle and the store's.
        if status.st_nlink > own[status.st_dev, status.st_ino] + _is_stored(file, status)
    )


def _folder() -> Path:
    return cache_dir() / "objects"


def _object(file: File) -> Path:
    return _folder() / file.sha256


def _is_stored(file: File, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(status, _object(file).lstat())
    except (OSError, BundleError):
        return False


def _take(stored: Path, path: Path, file: File) -> bool:
    """Put a link to the stored object in the place of ``path``; false where there is none, or none any more."""
    own = path.lstat()
    try:
        found = stored.lstat()
    except FileNotFoundError:
        return False
    if os.path.samestat(own, found) or not _alike(own, found):
        # Nothing to do, or nothing that can be done.
        return True
    temporary = path.with_name(f".{path.name}.shared")
    temporary.unlink(missing_ok=True)
    try:
        # Linked first: where that is impossible nothing is read in vain, and what is read is what will be kept.
        os.link(stored, temporary, follow_symlinks=False)
    except FileNotFoundError:
        return False
    try:
        if _is_sound(temporary, file):
            temporary.replace(path)
            return True
        # Another build may have replaced it since.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(temporary.lstat(), stored.lstat()):
                stored.unlink()
    finally:
        temporary.unlink(missing_ok=True)
    return False


def _alike(own: os.stat_result, found: os.stat_result) -> bool:
    """Whether the same users may do the same with both: a link has the owner and the mode of the object.

    What is no file is left to :func:`_is_sound`.
    """
    if not stat.S_ISREG(found.st_mode):
        return True
    return (own.st_uid, own.st_gid, own.st_mode) == (found.st_uid, found.st_gid, found.st_mode)


def _is_sound(path: Path, file: File) -> bool:
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_size == file.size and sha256(path) == file.sha256
