"""Verified files that stay open, so that what is loaded from them later is what was verified.

A name is not enough: a bundle may be replaced while it is used, and some of its parts are loaded only then. A
descriptor keeps the verified file, even after it was replaced and deleted.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from sd2rt.engines.bundle.files import sha256_of_open
from sd2rt.engines.bundle.private_copy import copy_to, private_folder
from sd2rt.engines.bundle.receipts import Receipts, Stamp, stamp
from sd2rt.engines.bundle.schema import File
from sd2rt.engines.errors import BundleError, Sd2rtError

Loaded = TypeVar("Loaded")
Progress = Callable[[File, int], None]

# Coarsest tick of a file system's clock on Linux: two changes within one may leave the same times.
_TICK_NS = 20_000_000
_ATTEMPTS = 5


class OpenFiles:
    """Files of a folder, opened, and verified by :meth:`verify`.

    The descriptors are closed by :meth:`close`, or with the last reference.

    Args:
        folder: an absolute path without links.
        remedy: what to do about a damaged file, for messages.

    Raises:
        OSError: the folder cannot be opened.
    """

    def __init__(self, folder: Path, remedy: str) -> None:
        self.folder, self.remedy = folder, remedy
        self._descriptors: dict[str, int] = {}
        self._stamps: dict[str, Stamp] = {}
        # Through a descriptor, the folder stays the same when another takes its name.
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._finalizer = weakref.finalize(self, _close, self._folder, self._descriptors)

    @property
    def root(self) -> Path:
        """Path of the open folder: follows it when it is renamed. The folder's own path where there is no /proc."""
        return self._through(self._folder, self.folder)

    @property
    def replaced(self) -> bool:
        """Another folder, or none, has the name of the one that is open."""
        try:
            return not os.path.samestat(self.folder.stat(), os.fstat(self._folder))
        except OSError:
            return True

    def open(self, file: File) -> None:
        """Open a file, which must be regular, reached through no link, and of the right size.

        Raises:
            BundleError: it is missing, unsafe, or has another size.
        """
        status = plain_file(self.folder, file, through=self.root, remedy=self.remedy)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(file.path, flags, dir_fd=self._folder)
        except OSError as error:
            raise self._unreadable(file, error) from None
        self._descriptors[file.path] = descriptor
        opened = os.fstat(descriptor)
        if not os.path.samestat(opened, status) or opened.st_size != file.size:
            raise self._changed(file)

    def verify(self, file: File, receipts: Receipts, progress: Progress) -> tuple[str, ...] | None:
        """Hash an open file, unless a receipt vouches for it.

        Returns the external data files that the receipt records; None if the file was hashed: record it then with
        :meth:`record`.

        Raises:
            BundleError: the file differs from the manifest, or was changed meanwhile.
        """
        found = stamp(os.fstat(self._descriptors[file.path]))
        self._stamps[file.path] = found
        locations = receipts.locations(file, found)
        if locations is not None:
            progress(file, file.size)
            return locations
        # A build that links to the file changes its times, but rarely more than once.
        for _ in range(_ATTEMPTS):
            # A change within the tick of the last one would leave no trace.
            recent = found[2] + _TICK_NS - time.time_ns()
            if recent > 0:
                time.sleep(min(recent, _TICK_NS) / 1e9)
            digest = self._digest(file, progress)
            if digest != file.sha256:
                raise BundleError(
                    f"{self.folder / file.path} has sha256 {digest[:12]}…, its manifest says {file.sha256[:12]}…: "
                    f"{self.remedy}"
                )
            progress = _ignore
            self._stamps[file.path] = found
            before, found = found, stamp(os.fstat(self._descriptors[file.path]))
            if found == before:
                return None
        raise self._changed(file)

    def record(self, file: File, receipts: Receipts, locations: tuple[str, ...] = ()) -> None:
        """Write a receipt for a file that :meth:`verify` has hashed."""
        receipts.add(file, self._stamps[file.path], locations)

    def path(self, file: File) -> Path:
        """Path by which the verified file can be opened even after it was replaced or deleted.

        Where there is no /proc, it is the file's own path.
        """
        self._check_open()
        return self._through(self._descriptors[file.path], self.folder / file.path)

    def load(
        self,
        files: Sequence[File],
        opening: Callable[[Path], Loaded],
        discard: Callable[[Loaded], None] = lambda loaded: None,
    ) -> Loaded:
        """Load something from verified files, even if they were replaced or deleted since.

        Args:
            files: the files that are read.
            opening: loads them from a folder that has them under their paths; it must not read them later.
            discard: closes what was loaded from files that changed meanwhile.

        Raises:
            BundleError: a file was written to since it was verified, or the old files are needed and cannot be
                copied.
        """
        before = self._in_place(files)
        if before is not None:
            try:
                loaded = self._naming(self.root, opening)
            except Sd2rtError:
                if self._in_place(files) == before:
                    raise
            else:
                if self._in_place(files) == before:
                    return loaded
                discard(loaded)
        # The names have led elsewhere. The open files are copied, which is rare, rather than linked: a link would
        # change their times, and with them every receipt.
        try:
            with private_folder() as folder:
                for file in files:
                    if copy_to(folder, file, self._descriptors[file.path]) != file.sha256:
                        raise self._changed(file)
                return self._naming(folder, opening)
        except OSError as error:
            raise BundleError(
                f"{self.folder} was replaced while it was used, and its old files cannot be copied "
                f"({error.strerror or error}): open it again"
            ) from None

    def _naming(self, root: Path, opening: Callable[[Path], Loaded]) -> Loaded:
        """Call ``opening``; its errors then name the folder of the bundle."""
        try:
            return opening(root)
        except Sd2rtError as error:
            if root == self.folder or str(root) not in str(error):
                raise
            raise type(error)(str(error).replace(str(root), str(self.folder))) from error

    def close(self) -> None:
        """Close all descriptors; nothing can be loaded afterwards."""
        self._finalizer()

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise BundleError(f"{self.folder} is closed: open it again")

    def _in_place(self, files: Sequence[File]) -> list[Stamp] | None:
        """Stamps of the files and of their folders if their names lead to the open files; otherwise None.

        Raises:
            BundleError: an open file was written to.
        """
        self._check_open()
        stamps, folders = [], {PurePosixPath(file.path).parent for file in files}
        root = self.root
        if root != self.folder:
            # An open folder cannot be exchanged, and a change of its own times means nothing.
            folders.discard(PurePosixPath("."))
        try:
            for file in files:
                self._check_unchanged(file)
                status = os.stat(root / file.path, follow_symlinks=False)
                if not os.path.samestat(status, os.fstat(self._descriptors[file.path])):
                    return None
                stamps.append(stamp(status))
            for folder in sorted(folders):
                status = os.stat(root / folder, follow_symlinks=False)
                stamps.append([status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns])
        except OSError:
            return None
        return stamps

    def _check_unchanged(self, file: File) -> None:
        """Hash an open file again if its times have changed: a new link to it is no harm, a write is."""
        found = stamp(os.fstat(self._descriptors[file.path]))
        if found == self._stamps[file.path]:
            return
        if found[0] != file.size or self._digest(file, _ignore) != file.sha256:
            raise self._changed(file)
        self._stamps[file.path] = found

    def _digest(self, file: File, progress: Progress) -> str:
        try:
            return digest(file, self._descriptors[file.path], progress)
        except OSError as error:
            raise self._unreadable(file, error) from None

    def _unreadable(self, file: File, error: OSError) -> BundleError:
        return BundleError(f"{self.folder / file.path} cannot be read ({error.strerror}): {self.remedy}")

    def _changed(self, file: File) -> BundleError:
        return BundleError(f"{self.folder / file.path} was changed while it was used: {self.remedy}")

    def _through(self, descriptor: int, otherwise: Path) -> Path:
        # By number, so that child processes can follow it too.
        path = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
        with contextlib.suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return path
        return otherwise


def digest(file: File, descriptor: int, progress: Progress) -> str:
    """SHA-256 of an open file, in hexadecimal; several threads may read the descriptor at once."""
    return sha256_of_open(descriptor, lambda read: progress(file, read))


def _ignore(file: File, read: int) -> None:
    return


def plain_file(
    bundle: Path,
    file: File,
    *,
    through: Path | None = None,
    remedy: str = "copy or build the bundle again",
) -> os.stat_result:
    """Check that a file is regular, reached through no link, and as large as in the manifest; return its status.

    Args:
        through: path of the open folder of the bundle; ``bundle`` then only names it in messages.
        remedy: what to do about a missing file.

    Raises:
        BundleError: it is missing, unsafe, or has another size.
    """
    path, shown = through or bundle, bundle
    for name in Path(file.path).parts:
        path, shown = path / name, shown / name
        try:
            status = path.lstat()
        except OSError as error:
            reason = (
                "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
            )
            raise BundleError(f"{shown} {reason}: {remedy}") from None
        if stat.S_ISLNK(status.st_mode):
            raise BundleError(
                f"{shown} is a symbolic link: bundles have regular files only, copy it with 'cp -rL'"
            )
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{shown} is not a regular file: build the bundle again")
    if status.st_size != file.size:
        raise BundleError(f"{shown} has {status.st_size} bytes, its manifest says {file.size}: {remedy}")
    return status


def _close(folder: int, descriptors: dict[str, int]) -> None:
    for descriptor in (folder, *descriptors.values()):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    descriptors.clear()
