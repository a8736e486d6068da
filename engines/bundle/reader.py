"""A bundle on disk, opened: its manifest, and files that are what the manifest says."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sd2rt.engines.bundle.cache import cache_dir, find_bundle
from sd2rt.engines.bundle.files import atomic_write, sha256
from sd2rt.engines.bundle.manifest import Manifest, read_manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.recovery import recover_abandoned
from sd2rt.engines.bundle.schema import File, Part
from sd2rt.engines.errors import BundleError


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle; what is in ``path`` is what ``manifest`` lists."""

    path: Path
    manifest: Manifest

    def file(self, path: str) -> Path:
        """Where a file of the manifest lies."""
        return self.path / path

    def part(self, name: PartName) -> Part:
        """The manifest's entry of a part. Raises BundleError where the bundle has none."""
        entry = self.manifest.parts.get(name)
        if entry is None:
            raise BundleError(f"{self.path} has no part {name}, which this takes: build the bundle again")
        return entry


def open_bundle(
    bundle: str | os.PathLike[str],
    *,
    trust_receipts: bool = True,
    progress: Callable[[File, int], None] = lambda file, read: None,
) -> Bundle:
    """Open a bundle by path or name, and verify the sizes and hashes of its files.

    A file that was hashed before and has not changed since (size, times, inode) is taken from the receipt in
    the cache directory unless ``trust_receipts`` is false. ``progress`` hears each file and the bytes read.

    Raises:
        BundleError: it is missing, unsafe (a link, a path that leaves it) or not what its manifest says.
    """
    path = locate(bundle)
    manifest = read_manifest(path)
    receipts = _Receipts(path, use=trust_receipts)
    for file in manifest.files:
        status = plain_file(path, file)
        if receipts.vouch(file, status):
            progress(file, file.size)
            continue
        found = _hash(path, file, progress)
        if found != file.sha256:
            raise BundleError(
                f"{path / file.path} has sha256 {found[:12]}…, its manifest says {file.sha256[:12]}…: "
                "copy or build the bundle again"
            )
        receipts.add(file, status)
    receipts.save()
    return Bundle(path, manifest)


def verify_engines(bundle: Bundle, progress: Callable[[File, int], None] = lambda file, read: None) -> None:
    """Read the engines' files, which opening a bundle leaves to the backend, and compare their hashes.

    Raises:
        BundleError: one is missing, unsafe or not what the manifest says.
    """
    for file in bundle.manifest.engine_files:
        plain_file(bundle.path, file)
        if _hash(bundle.path, file, progress) != file.sha256:
            raise BundleError(
                f"{bundle.path / file.path} is not what its manifest says: build it again with "
                "'sd2rt build --engines-only'"
            )


def locate(bundle: str | os.PathLike[str]) -> Path:
    """The folder of a bundle given by path or name, put back in its place where a killed build left it aside."""
    path = Path(os.path.realpath(find_bundle(bundle)))
    recover_abandoned(path)
    return path


def _hash(bundle: Path, file: File, progress: Callable[[File, int], None]) -> str:
    try:
        return sha256(bundle / file.path, lambda read: progress(file, read))
    except OSError as error:
        raise BundleError(
            f"{bundle / file.path} cannot be read ({error.strerror}): copy or build the bundle again"
        ) from None


def plain_file(bundle: Path, file: File) -> os.stat_result:
    """The status of a file that is a file, by no link, and has the size that its manifest says.

    Raises:
        BundleError: it is not.
    """
    path = bundle
    for name in Path(file.path).parts:
        path = path / name
        try:
            status = path.lstat()
        except OSError as error:
            reason = (
                "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
            )
            raise BundleError(f"{path} {reason}: copy or build the bundle again") from None
        if stat.S_ISLNK(status.st_mode):
            raise BundleError(f"{path} is a symbolic link: a bundle holds files only, copy it with 'cp -rL'")
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path} is not a regular file: build the bundle again")
    if status.st_size != file.size:
        raise BundleError(
            f"{path} has {status.st_size} bytes, its manifest says {file.size}: copy or build the bundle again"
        )
    return status


class _Receipts:
    """What was hashed before, kept outside the bundle: whoever can write the bundle cannot write these."""

    def __init__(self, bundle: Path, use: bool) -> None:
        self._known: dict[str, object] = {}
        self._new = False
        name = hashlib.sha256(os.fsencode(bundle)).hexdigest()[:32]
        try:
            self._path: Path | None = cache_dir() / "receipts" / f"{name}.json"
            known = json.loads(self._path.read_bytes()) if use else {}
            self._known = known if isinstance(known, dict) else {}
        except BundleError:
            # No home directory: every opening reads everything.
            self._path = None
        except (OSError, ValueError, RecursionError):
            self._known = {}

    @staticmethod
    def _entry(file: File, status: os.stat_result) -> list[object]:
        return [file.sha256, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]

    def vouch(self, file: File, status: os.stat_result) -> bool:
        return self._known.get(file.path) == self._entry(file, status)

    def add(self, file: File, status: os.stat_result) -> None:
        self._known[file.path] = self._entry(file, status)
        self._new = True

    def save(self) -> None:
        if not self._new or self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path) as temporary:
                temporary.write_text(json.dumps(self._known))
        except OSError:
            # A cache that cannot be written costs time at the next opening, nothing else.
            return
