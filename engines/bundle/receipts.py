"""Records of verified files, which spare hashing a file again while nothing about it has changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from pathlib import Path

from sd2rt.engines.bundle.cache import cache_dir
from sd2rt.engines.bundle.files import atomic_write
from sd2rt.engines.bundle.schema import File
from sd2rt.engines.errors import BundleError
from sd2rt.engines.json_text import parse_json
from sd2rt.engines.regular_file import read_regular

_MAX_BYTES = 16 << 20
"""Limit of a folder's receipts, which have some hundred bytes for each file."""

FOLDER = "/"
"""Entry with the path of the folder, which is no path of a file in it."""

Stamp = list[int]
"""Size, modification time, change time, inode and device of a file."""


def stamp(status: os.stat_result) -> Stamp:
    """Facts about a file that change when its contents do.

    The change time cannot be set by a program: it also shows a change that restored size and modification time. What
    no stamp shows is a change below the file system, such as a failing disk's.
    """
    assert stat.S_ISREG(status.st_mode)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


class Receipts:
    """Receipts of the verified files in a folder, stored in the cache directory: write access to the folder does not
    suffice to forge them.

    Args:
        folder: the folder of the files; each has its own receipts.
        use: read existing receipts; otherwise only write new ones.
    """

    def __init__(self, folder: Path, *, use: bool) -> None:
        self._entries: dict[str, object] = {}
        self._changed, self._folder = False, folder
        name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
        try:
            self._path: Path | None = cache_dir() / "receipts" / f"{name}.json"
            entries = parse_json(read_regular(self._path, _MAX_BYTES)) if use else {}
            self._entries = entries if isinstance(entries, dict) else {}
        except BundleError:
            # No home directory for receipts: hash everything each time.
            self._path = None
        except (OSError, ValueError):
            self._entries = {}

    def locations(self, file: File, found: Stamp) -> tuple[str, ...] | None:
        """The external data files that a verified file names; None if no receipt vouches for it."""
        entry = self._entries.get(file.path)
        if not isinstance(entry, list) or entry[:2] != [file.sha256, found] or len(entry) != 3:
            return None
        names = entry[2]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return None
        return tuple(names)

    def add(self, file: File, found: Stamp, locations: tuple[str, ...] = ()) -> None:
        """Record that a file with this stamp was hashed and matches, and what external data files it names."""
        self._entries[file.path] = [file.sha256, found, list(locations)]
        self._changed = True

    def save(self) -> None:
        """Write new receipts, if there is a cache that can be written."""
        if not self._changed or self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path) as temporary:
                # Named, so that the receipts of a folder that is gone can be found.
                temporary.write_text(json.dumps({**self._entries, FOLDER: os.fsdecode(self._folder)}))
        except OSError:
            # Without a writable cache the next opening only takes longer.
            return


def prune_receipts() -> int:
    """Remove the receipts of folders that are gone, and of earlier versions, which named none; returns their number.

    Raises:
        BundleError: there is no cache directory.
    """
    removed = 0
    folder = cache_dir() / "receipts"
    for path in folder.glob("*.json") if os.path.isdir(folder) else ():
        try:
            entries = parse_json(read_regular(path, _MAX_BYTES))
            place = entries.get(FOLDER)
            useful = isinstance(place, str) and os.path.isdir(place)
        except (OSError, ValueError, AttributeError):
            useful = False
        if not useful:
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
    return removed
