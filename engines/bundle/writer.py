"""Crash-safe, resumable writing of bundles."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

from sd2rt.engines.bundle.cache import remember_bundle
from sd2rt.engines.bundle.file_lock import FileLock
from sd2rt.engines.bundle.files import atomic_write, describe, is_disk_full, sync
from sd2rt.engines.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, read_manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.bundle.recovery import recover
from sd2rt.engines.bundle.schema import LICENSE_FOLDER, Part
from sd2rt.engines.bundle.shared_files import prune, share
from sd2rt.engines.bundle.temporary import temporary_of
from sd2rt.engines.errors import BuildError, BundleError
from sd2rt.engines.json_text import parse_json
from sd2rt.engines.regular_file import read_regular

PROGRESS = "progress.json"
BUNDLE_NAMES = {MANIFEST, LICENSE_FOLDER, "tokenizer.json", "embeddings.npy", *get_args(PartName)}
"""Top-level names in a bundle; a folder with any other name in it is never replaced."""


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A finished bundle; ``fresh`` is false if an identical one already existed and was kept."""

    path: Path
    manifest: Manifest
    fresh: bool


def build_key(facts: Mapping[str, Any], native: Sequence[tuple[int, int]], version: str) -> str:
    """SHA-256 over everything that a bundle's contents depend on.

    Args:
        facts: of the checkpoint, the precision and the exporters, as JSON values.
        native: native sizes.
        version: of sd2rt.
    """
    text = json.dumps({**facts, "native": native, "sd2rt": version}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def find_built(target: Path, key: str) -> tuple[Manifest | None, bool]:
    """The manifest at ``target`` if its bundle has this key and is intact; and whether it has this key at all."""
    try:
        if read_manifest(target).build_key != key:
            return None, False
    except BundleError:
        return None, False
    try:
        return open_bundle(target).manifest, True
    except BundleError:
        return None, True


class BundleWriter:
    """Context manager that builds ``target`` in a hidden folder beside it, under a lock.

    :meth:`finish` moves the complete bundle into place; ``target`` does not change before that. ``key`` is a hash of
    everything that the bundle depends on: a rerun with the same key reuses the parts that an interrupted build has
    finished.

    Raises:
        BuildError: another build of the bundle is running, the disk is full, or ``target`` must not be replaced.
    """

    def __init__(self, target: Path, key: str, *, needed_bytes: int, replace: bool) -> None:
        # Resolved: a symbolic link to a bundle is kept, and the bundle that it points to is replaced.
        self.target = Path(os.path.realpath(target))
        self.folder = self._beside("building")
        self._key = key
        self._needed = needed_bytes
        self._replace = replace
        self._parts: dict[PartName, Part] = {}

    def _beside(self, suffix: str) -> Path:
        return self.target.parent / f".{self.target.name}.{suffix}"

    def __enter__(self) -> Self:
        with os_errors_as_build_errors(self.target):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._beside("lock"))
            if not self._lock.acquire():
                raise BuildError(f"another build of {self.target} is running: wait for it, or stop it")
            try:
                recover(self.target)
                self._check_target()
                self._resume()
                # Before the check of free space, which counts what this frees.
                prune()
                self._check_space()
                self.folder.mkdir(exist_ok=True)
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Keep the folder for a rerun only if there is something to resume from.
        if not self._is_resumable():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()
        if isinstance(error, OSError):
            raise _as_build_error(error, self.target) from error

    def _is_resumable(self) -> bool:
        return bool(self._parts)

    def part(self, name: PartName) -> Part | None:
        """Return a part that an interrupted build with the same key has finished, after checking its files."""
        return self._parts.get(name)

    def start_part(self, name: PartName) -> None:
        """Remove what an interrupted build left of a part, and forget the parts that use its files."""
        self._parts = {
            other: part
            for other, part in self._parts.items()
            if not any(Path(file.path).parts[0] == name for file in part.files)
        }
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def keep_part(self, name: PartName, part: Part) -> None:
        """Record a finished part, so that a rerun can reuse it."""
        for file in part.files:
            sync(self.folder / file.path)
        self._parts[name] = part
        record = {"key": self._key, "parts": {n: p.model_dump(mode="json") for n, p in self._parts.items()}}
        with atomic_write(self.folder / PROGRESS, durable=True) as temporary:
            temporary.write_text(json.dumps(record))

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, share files with other bundles, and move the bundle into place."""
        # Before unlisted files are removed: an interrupted share may have left a temporary link.
        for file in manifest.files:
            share(self.folder, file)
        listed = {PROGRESS, *(file.path for file in (*manifest.files, *manifest.engine_files))}
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if os.path.isdir(path):
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(self.folder).as_posix() not in listed:
                path.unlink()
        (self.folder / MANIFEST).write_text(manifest.to_json())
        for path in self.folder.rglob("*"):
            sync(path)
        # The bundle is complete: there is nothing left to resume.
        (self.folder / PROGRESS).unlink(missing_ok=True)
        sync(self.folder)
        old = self._beside("old")
        try:
            if os.path.exists(self.target):
                # A rename cannot replace a folder that is not empty. The old bundle is moved aside first, and
                # `recover` restores it if the process dies between the two renames.
                self.target.rename(old)
            self.folder.rename(self.target)
        finally:
            recover(self.target)
        sync(self.target.parent)
        remember_bundle(manifest.identity, self.target)
        # Objects that only the old bundle linked to.
        prune()

    def _check_target(self) -> None:
        if not os.path.exists(self.target):
            return
        if not os.path.isdir(self.target):
            raise BuildError(f"{self.target} is a file: use -o with a folder")
        names = {path.name for path in self.target.iterdir()}
        if not names:
            return
        # A killed build of engines may have left a temporary manifest.
        foreign = {name for name in names - BUNDLE_NAMES if temporary_of(name) != MANIFEST}
        if MANIFEST not in names or foreign:
            example = min(foreign or names)
            raise BuildError(
                f"{self.target} is not a bundle (it contains {example}): choose another folder with -o"
            )
        if not self._replace:
            raise BuildError(
                f"{self.target} is another bundle: add --force to replace it, or choose another folder with -o"
            )

    def _resume(self) -> None:
        try:
            record = parse_json(read_regular(self.folder / PROGRESS, MAX_MANIFEST_BYTES))
            if record["key"] == self._key:
                parts = {name: Part.model_validate(part) for name, part in record["parts"].items()}
                self._parts = {name: part for name, part in parts.items() if self._is_whole(part)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # No record, or a damaged one: start from the beginning.
            self._parts = {}
        if not self._parts:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        # Files outside the parts are written again. Remove them first: they may be shared with other bundles by now,
        # and writing into them would change those bundles.
        for path in self.folder.iterdir():
            if not os.path.isdir(path) and path.name != PROGRESS:
                path.unlink()

    def _is_whole(self, part: Part) -> bool:
        try:
            return all(describe(self.folder, file.path) == file for file in part.files)
        except OSError:
            return False

    def _finished_bytes(self) -> int:
        sizes = {file.path: file.size for part in self._parts.values() for file in part.files}
        return sum(sizes.values())

    def _check_space(self) -> None:
        needed, free = self._needed - self._finished_bytes(), shutil.disk_usage(self.target.parent).free
        if needed > free:
            raise BuildError(
                f"{self.target} needs about {_amount(needed)}, {self.target.parent} has {_amount(free)} free: "
                "make room, or choose another disk with -o"
            )


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


@contextmanager
def os_errors_as_build_errors(target: Path) -> Iterator[None]:
    """Convert OSError to a one-line BuildError."""
    try:
        yield
    except OSError as error:
        raise _as_build_error(error, target) from error


def _as_build_error(error: OSError, target: Path) -> BuildError:
    if is_disk_full(error):
        return BuildError(
            f"the disk of {target.parent} is full: make room, or choose another disk with -o; "
            "finished parts are kept: the same command resumes from them"
        )
    return BuildError(f"{target} cannot be written: {error.strerror or error}")
