"""Writing a bundle so that a killed build leaves the old bundle or none, and a rerun goes on where it stopped."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, get_args

from sd2rt.engines.bundle.file_lock import FileLock
from sd2rt.engines.bundle.files import atomic_write, describe, sync, temporary_of
from sd2rt.engines.bundle.manifest import MANIFEST, Manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.recovery import recover
from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.bundle.shared_files import prune, share
from sd2rt.engines.errors import BuildError

_PROGRESS = "progress.json"
_BUNDLE_NAMES = {MANIFEST, "tokenizer.json", "embeddings.npy", *get_args(PartName)}
"""What lies at the top of a bundle; a folder that holds anything else is never replaced."""


class BundleWriter:
    """Builds ``target`` in a hidden folder beside it, under a lock, and moves it into place when it is whole.

    ``key`` stands for everything that the result depends on: parts that an interrupted build of the same key
    finished are taken over. Used as a context manager; nothing changes at ``target`` before :meth:`finish`.

    Raises:
        BuildError: another build of the bundle is running, the disk is full, or ``target`` is something that
            may not be replaced.
    """

    def __init__(self, target: Path, key: str, *, needed_bytes: int, replace: bool) -> None:
        # A link to a bundle stays, and what it leads to is replaced: readers resolve it too.
        self.target = Path(os.path.realpath(target))
        self.folder = self._beside("building")
        self._key = key
        self._needed = needed_bytes
        self._replace = replace
        self._parts: dict[PartName, Part] = {}

    def _beside(self, what: str) -> Path:
        return self.target.parent / f".{self.target.name}.{what}"

    def __enter__(self) -> Self:
        with reported(self.target):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._beside("lock"))
            if not self._lock.acquire():
                raise BuildError(f"another build of {self.target} is running: wait for it, or stop it")
            try:
                recover(self.target)
                self._check_target()
                self._resume()
                # First: the room of bundles that were removed is there to be used.
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
        # Whole parts are worth keeping for a rerun; a folder without any is not.
        if not self._parts:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()
        if isinstance(error, OSError):
            raise _as_build_error(error, self.target) from error

    def part(self, name: PartName) -> Part | None:
        """A part that an interrupted build of the same key has finished, its files checked."""
        return self._parts.get(name)

    def start_part(self, name: PartName) -> None:
        """Clear away what an interrupted build left of a part, and of those that lie beside it or use its weights."""
        self._parts = {
            kept: part
            for kept, part in self._parts.items()
            if not any(Path(file.path).parts[0] == name for file in part.files)
        }
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def keep_part(self, name: PartName, part: Part) -> None:
        """Record a finished part, so that a rerun can take it over."""
        for file in part.files:
            sync(self.folder / file.path)
        self._parts[name] = part
        record = {"key": self._key, "parts": {n: p.model_dump(mode="json") for n, p in self._parts.items()}}
        with atomic_write(self.folder / _PROGRESS, durable=True) as temporary:
            temporary.write_text(json.dumps(record))

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, store once what other bundles hold too, and move the bundle into place."""
        # Before the folder is cleared: a kill, or an error, may leave a link too many.
        for file in manifest.files:
            share(self.folder, file)
        listed = {_PROGRESS, *(file.path for file in manifest.files)}
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(self.folder).as_posix() not in listed:
                path.unlink()
        (self.folder / MANIFEST).write_text(manifest.to_json())
        for path in self.folder.rglob("*"):
            sync(path)
        # From here on there is nothing to resume from: the bundle is whole.
        (self.folder / _PROGRESS).unlink(missing_ok=True)
        sync(self.folder)
        old = self._beside("old")
        try:
            if self.target.exists():
                # A folder that holds something cannot be renamed over: it steps aside first, and
                # `recover` brings it back should the process die between the two renames.
                self.target.rename(old)
            self.folder.rename(self.target)
        finally:
            recover(self.target)
        sync(self.target.parent)
        # What the old bundle alone had linked.
        prune()

    def _check_target(self) -> None:
        if not self.target.exists():
            return
        if not self.target.is_dir():
            raise BuildError(f"{self.target} is a file: give -o a folder")
        found = {path.name for path in self.target.iterdir()}
        if not found:
            return
        # A kill may have left a manifest that an engine was being added to.
        foreign = {name for name in found - _BUNDLE_NAMES if temporary_of(name) != MANIFEST}
        if MANIFEST not in found or foreign:
            example = min(foreign or found)
            raise BuildError(
                f"{self.target} holds something other than a bundle ({example}): give -o another folder"
            )
        if not self._replace:
            raise BuildError(
                f"{self.target} holds another bundle: add --force to replace it, or give -o another"
            )

    def _resume(self) -> None:
        try:
            record = json.loads((self.folder / _PROGRESS).read_bytes())
            if record["key"] == self._key:
                parts = {name: Part.model_validate(part) for name, part in record["parts"].items()}
                self._parts = {name: part for name, part in parts.items() if self._is_whole(part)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            # No record, or one that a kill cut short: start again.
            self._parts = {}
        if not self._parts:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        # What lies beside the parts is written anew, and may be one with other bundles' files by now: writing into
        # it would change them.
        for path in self.folder.iterdir():
            if not path.is_dir() and path.name != _PROGRESS:
                path.unlink()

    def _is_whole(self, part: Part) -> bool:
        try:
            return all(describe(self.folder, file.path) == file for file in part.files)
        except OSError:
            return False

    def _check_space(self) -> None:
        sizes = {file.path: file.size for part in self._parts.values() for file in part.files}
        kept = sum(sizes.values())
        needed, free = self._needed - kept, shutil.disk_usage(self.target.parent).free
        if needed > free:
            raise BuildError(
                f"{self.target} needs about {_amount(needed)}, {self.target.parent} has {_amount(free)} free: "
                "make room, or give -o another disk"
            )


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


@contextmanager
def reported(target: Path) -> Iterator[None]:
    """Turn the file system's errors into one line each."""
    try:
        yield
    except OSError as error:
        raise _as_build_error(error, target) from error


def _as_build_error(error: OSError, target: Path) -> BuildError:
    # NumPy writes arrays in C and tells no reason, only how much of them it wrote.
    short = error.errno is None and "requested and" in str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or short:
        return BuildError(
            f"the disk of {target.parent} is full: make room, or give -o another disk; "
            "finished parts are kept, so that the same command goes on from them"
        )
    return BuildError(f"{target} cannot be written: {error.strerror or error}")
