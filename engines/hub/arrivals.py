"""Write bundles whose files arrive from elsewhere: each is verified on arrival, and resumed if interrupted."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from sd2rt.engines.bundle.external_data import check_locations, external_locations, is_graph
from sd2rt.engines.bundle.files import atomic_write, describe, sync
from sd2rt.engines.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest
from sd2rt.engines.bundle.schema import File
from sd2rt.engines.bundle.shared_files import take_shared
from sd2rt.engines.bundle.writer import BUNDLE_NAMES, PROGRESS, BundleWriter
from sd2rt.engines.errors import BundleError
from sd2rt.engines.json_text import parse_json
from sd2rt.engines.printable import repr_of, shown
from sd2rt.engines.regular_file import read_regular

Fetch = Callable[[File, Path], None]
"""Fetches what a partial file lacks, and appends it; the file may be missing."""

_PARTIAL = ".arriving"

# Far above any bundle of Stable Diffusion 2: limits for manifests that are made to fill a disk.
_MAX_FILES = 10_000
_MAX_BYTES = 1 << 40
_MAX_NAME_BYTES = 200
_MAX_PATH_BYTES = 1000


class Arrivals(BundleWriter):
    """Context manager that fetches a bundle into a hidden folder beside ``target``, under the lock of builds.

    Files that have arrived, whole or in part, stay there after an interruption; a rerun for the same manifest hashes
    the whole ones and resumes the others. Nothing stays after bytes were refused.

    Raises:
        BuildError: a build or pull of the bundle is running, the disk is full, or ``target`` must not be replaced.
        BundleError: the manifest lists a file that no bundle has.
    """

    def __init__(self, target: Path, manifest: Manifest, *, replace: bool) -> None:
        self.manifest = manifest
        self.files = (*manifest.files, *manifest.engine_files)
        self._refused = False
        _check_files(self.files)
        super().__init__(
            target, _key(manifest), needed_bytes=sum(file.size for file in self.files), replace=replace
        )

    def fetch(self, file: File, fetch: Fetch) -> None:
        """Put a verified file into the bundle: one that has arrived before, a shared one, or one that is fetched.

        Raises:
            BundleError: the bytes do not match the manifest, even when they are fetched again.
            OSError: it cannot be written.
        """
        self._record()
        path, partial = self.folder / file.path, self._partial(file)
        if os.path.lexists(path):
            if _matches(path, file):
                return
            path.unlink()
        if take_shared(self.folder, file):
            return
        partial.parent.mkdir(exist_ok=True)
        # Twice: what is left of an interrupted pull may be damaged.
        for _ in range(2):
            fetch(file, partial)
            if _matches(partial, file):
                sync(partial)
                path.parent.mkdir(parents=True, exist_ok=True)
                partial.replace(path)
                return
            arrived = describe(partial.parent, partial.name)
            partial.unlink()
        self._refused = True
        raise BundleError(
            f"{file.path} arrived with {arrived.size} bytes and sha256 {arrived.sha256[:12]}…, the manifest says "
            f"{file.size} and {file.sha256[:12]}…: nothing of it was kept"
        )

    def complete(self) -> None:
        """Check the external data of graphs, and move the bundle into place.

        Raises:
            BundleError: a graph is damaged, or reads a file that is not its part's.
        """
        try:
            for part in self.manifest.parts.values():
                for file in part.files:
                    if is_graph(file.path, part):
                        check_locations(self.folder, part, file.path, self._locations(file))
        except BundleError:
            self._refused = True
            raise
        self.finish(self.manifest)

    def _locations(self, file: File) -> tuple[str, ...]:
        try:
            return external_locations(self.folder / file.path)
        except ValueError as error:
            raise BundleError(f"{file.path}: {error}") from None

    def arrived_bytes(self, file: File) -> int:
        """Number of bytes of a file that an interrupted pull has left; they are not verified yet."""
        for path in (self.folder / file.path, self._partial(file)):
            if os.path.isfile(path):
                return min(path.stat().st_size, file.size)
        return 0

    def _partial(self, file: File) -> Path:
        return self.folder / _PARTIAL / file.sha256

    def _is_resumable(self) -> bool:
        return not self._refused and any(True for _ in self._arrived())

    def _arrived(self) -> Iterator[Path]:
        return (path for path in self.folder.rglob("*") if os.path.isfile(path) and path.name != PROGRESS)

    def _finished_bytes(self) -> int:
        return sum(self.arrived_bytes(file) for file in self.files)

    def _resume(self) -> None:
        # In a folder that others may write to, a link would lead the bytes out of it.
        if os.path.islink(self.folder):
            os.unlink(self.folder)
        if any(not _is_plain(path) for path in self.folder.rglob("*")):
            shutil.rmtree(self.folder, ignore_errors=True)
        try:
            record = parse_json(read_regular(self.folder / PROGRESS, MAX_MANIFEST_BYTES))
            if record["key"] == self._key:
                return
        except (OSError, ValueError, KeyError, TypeError):
            # No record, or a damaged one: start from the beginning.
            pass
        shutil.rmtree(self.folder, ignore_errors=True)

    def _record(self) -> None:
        """Record which bundle the folder is of, before its first file."""
        if not os.path.isfile(self.folder / PROGRESS):
            with atomic_write(self.folder / PROGRESS) as temporary:
                temporary.write_text(json.dumps({"key": self._key, "parts": {}}))


def _check_files(files: tuple[File, ...]) -> None:
    """Check that files of a manifest from elsewhere can be a bundle's, before any is written.

    Raises:
        BundleError: there are too many or too large ones, or a path that cannot be written.
    """
    total = sum(file.size for file in files)
    if len(files) > _MAX_FILES or total > _MAX_BYTES:
        raise BundleError(
            f"the manifest lists {len(files)} files of {total / 1e9:.1f} GB, which no bundle has"
        )
    paths = {file.path for file in files}
    for path in sorted(paths):
        pure = PurePosixPath(path)
        if (
            pure.parts[0] not in BUNDLE_NAMES - {MANIFEST}
            or len(path.encode(errors="replace")) > _MAX_PATH_BYTES
            or any(len(name.encode(errors="replace")) > _MAX_NAME_BYTES for name in pure.parts)
            or any(str(parent) in paths for parent in pure.parents)
        ):
            raise BundleError(f"the manifest lists {shown(repr_of(path))}, which no bundle has")


def _key(manifest: Manifest) -> str:
    import hashlib

    return hashlib.sha256(manifest.to_json().encode()).hexdigest()


def _is_plain(path: Path) -> bool:
    """Return True for a folder, and for a file that may be written to: an unfinished one has one name only."""
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        return True
    return stat.S_ISREG(status.st_mode) and (status.st_nlink == 1 or path.parent.name != _PARTIAL)


def _matches(path: Path, file: File) -> bool:
    return path.stat().st_size == file.size and describe(path.parent, path.name).sha256 == file.sha256
