"""Open a bundle on disk, and verify its files against its manifest."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sd2rt.engines.bundle.cache import find_bundle, require_bundle
from sd2rt.engines.bundle.external_data import check_locations, external_locations, is_graph
from sd2rt.engines.bundle.files import sha256
from sd2rt.engines.bundle.manifest import MANIFEST, Manifest, read_manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.open_files import OpenFiles, Progress, plain_file
from sd2rt.engines.bundle.private_copy import remove_abandoned
from sd2rt.engines.bundle.receipts import Receipts
from sd2rt.engines.bundle.recovery import recover_abandoned
from sd2rt.engines.bundle.schema import File, Part
from sd2rt.engines.bundle.temporary import temporary_of
from sd2rt.engines.errors import BundleError

Loaded = TypeVar("Loaded")

_REMEDY = "copy or build the bundle again"
_ATTEMPTS = 20
# Longest time for which a build that replaces a bundle may leave its name without one.
_REPLACING_S = 1.0


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle: the open files match ``manifest``, also after another bundle has taken their place."""

    path: Path
    manifest: Manifest
    files: OpenFiles = field(repr=False, compare=False)

    def file(self, path: str) -> Path:
        """Location of a file listed in the manifest. Another file may be there by now: see :meth:`load`."""
        return self.path / path

    def part(self, name: PartName) -> Part:
        """Manifest entry of a part. Raises BundleError if the bundle has no such part."""
        entry = self.manifest.parts.get(name)
        if entry is None:
            raise BundleError(f"{self.path} has no part {name}, which is needed here: build the bundle again")
        return entry

    def load(
        self,
        files: tuple[File, ...],
        opening: Callable[[Path], Loaded],
        discard: Callable[[Loaded], None] = lambda loaded: None,
    ) -> Loaded:
        """Load something from the verified files, even if the bundle was replaced or deleted since it was opened.

        Args:
            files: the files that are read.
            opening: loads them from a folder that has them under their paths; it must not read them later.
            discard: closes what was loaded from files that changed meanwhile.

        Raises:
            BundleError: a file was written to since the bundle was opened, or the old files are needed and cannot be
                copied.
        """
        return self.files.load(files, opening, discard)

    def close(self) -> None:
        """Close the files: nothing can be loaded afterwards. They are also closed with the last reference."""
        self.files.close()


def open_bundle(
    bundle: str | os.PathLike[str],
    *,
    trust_receipts: bool = True,
    progress: Progress = lambda file, read: None,
) -> Bundle:
    """Open a bundle by path or name, verify the sizes and hashes of its files, and that its graphs read no others.

    A receipt in the cache directory spares hashing a file again if its size, times and inode have not changed;
    ``trust_receipts=False`` ignores receipts. ``progress`` is called with each file and the number of bytes read.
    A bundle that is replaced meanwhile is opened anew.

    Raises:
        BundleError: the bundle is missing, unsafe (a link, or a path outside it), or does not match its manifest.
    """
    remove_abandoned()
    for attempt in range(_ATTEMPTS):
        path = locate(bundle)
        try:
            files = OpenFiles(path, _REMEDY)
        except OSError as error:
            # Its message says how to build a missing bundle.
            read_manifest(path)
            problem = BundleError(f"{path} cannot be read: {error.strerror}")
        else:
            try:
                manifest = read_manifest(path, through=files.root)
                _verify(files, manifest, Receipts(path, use=trust_receipts), progress)
                return Bundle(path, manifest, files)
            except BundleError as error:
                if attempt == _ATTEMPTS - 1 or not files.replaced:
                    raise
                problem = error
            files.close()
    raise problem


def _verify(files: OpenFiles, manifest: Manifest, receipts: Receipts, progress: Progress) -> None:
    # All are opened first, before a build that replaces the bundle can delete them.
    for file in manifest.files:
        files.open(file)
    for file in manifest.files:
        locations = files.verify(file, receipts, progress)
        if locations is None:
            locations = _locations(files, manifest, file)
            files.record(file, receipts, locations)
        for part in manifest.parts.values():
            if locations and file in part.files:
                check_locations(files.folder, part, file.path, locations)
    receipts.save()


def _locations(files: OpenFiles, manifest: Manifest, file: File) -> tuple[str, ...]:
    """The external data files that a verified file names; none if it is no graph."""
    if not any(is_graph(file.path, part) for part in manifest.parts.values() if file in part.files):
        return ()
    path = files.folder / file.path
    try:
        return external_locations(files.path(file))
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): {_REMEDY}") from None
    except ValueError as error:
        raise BundleError(f"{path}: {error}: {_REMEDY}") from None


def verify_engines(bundle: Bundle, progress: Callable[[File, int], None] = lambda file, read: None) -> None:
    """Hash the engine files, which :func:`open_bundle` leaves to the backends, and compare with the manifest.

    Raises:
        BundleError: a file is missing, unsafe, or does not match the manifest.
    """
    for file in bundle.manifest.engine_files:
        plain_file(bundle.path, file)
        if _hash(bundle.path, file, progress) != file.sha256:
            raise BundleError(
                f"{bundle.path / file.path} does not match its manifest: build it again with "
                "'sd2rt build --engines-only'"
            )


def verify_no_others(bundle: Bundle) -> None:
    """Check that a bundle has only the files of its manifest, and those that a build of engines leaves when killed.

    Raises:
        BundleError: there is another file, or a folder cannot be read.
    """
    listed = {MANIFEST, *(file.path for file in (*bundle.manifest.files, *bundle.manifest.engine_files))}

    def unreadable(error: OSError) -> None:
        raise BundleError(f"{error.filename} cannot be read: {error.strerror}") from None

    for folder, folders, files in os.walk(bundle.path, onerror=unreadable):
        # Links to folders are not followed, and are no part of a bundle either.
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted((*files, *links)):
            path = Path(folder, name).relative_to(bundle.path)
            unfinished = temporary_of(name) == MANIFEST or (
                len(path.parts) == 2 and name.startswith("tensorrt")
            )
            if path.as_posix() not in listed and not unfinished:
                raise BundleError(f"{bundle.path / path} is not listed in the bundle's manifest: remove it")


def locate(bundle: str | os.PathLike[str]) -> Path:
    """Resolve a path or name to the bundle's folder; recovers a bundle that a killed build had moved aside.

    A build that replaces a bundle leaves its name without one for a moment: waits for that.

    Raises:
        BundleError: there is no bundle of this name.
    """
    path = Path(os.path.realpath(find_bundle(bundle)))
    end = time.monotonic() + _REPLACING_S
    while not os.path.lexists(path) and os.path.isdir(path.parent / f".{path.name}.old"):
        recover_abandoned(path)
        if os.path.lexists(path) or end < time.monotonic():
            break
        time.sleep(0.002)
    require_bundle(bundle)
    return path


def _hash(bundle: Path, file: File, progress: Progress) -> str:
    try:
        return sha256(bundle / file.path, lambda read: progress(file, read))
    except OSError as error:
        raise BundleError(
            f"{bundle / file.path} cannot be read ({error.strerror}): copy or build the bundle again"
        ) from None
