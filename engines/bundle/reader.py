"""Open a bundle on disk, and verify its files against its manifest."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sd2rt.engines.bundle.cache import find_bundle
from sd2rt.engines.bundle.external_data import check_locations, external_locations, is_graph
from sd2rt.engines.bundle.files import sha256
from sd2rt.engines.bundle.manifest import Manifest, read_manifest
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.receipts import Receipts, stamp
from sd2rt.engines.bundle.recovery import recover_abandoned
from sd2rt.engines.bundle.schema import File, Part
from sd2rt.engines.errors import BundleError


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle: the files in ``path`` match ``manifest``."""

    path: Path
    manifest: Manifest

    def file(self, path: str) -> Path:
        """Location of a file listed in the manifest."""
        return self.path / path

    def part(self, name: PartName) -> Part:
        """Manifest entry of a part. Raises BundleError if the bundle has no such part."""
        entry = self.manifest.parts.get(name)
        if entry is None:
            raise BundleError(f"{self.path} has no part {name}, which is needed here: build the bundle again")
        return entry


def open_bundle(
    bundle: str | os.PathLike[str],
    *,
    trust_receipts: bool = True,
    progress: Callable[[File, int], None] = lambda file, read: None,
) -> Bundle:
    """Open a bundle by path or name, verify the sizes and hashes of its files, and that its graphs read no others.

    A receipt in the cache directory spares hashing a file again if its size, times and inode have not changed;
    ``trust_receipts=False`` ignores receipts. ``progress`` is called with each file and the number of bytes read.

    Raises:
        BundleError: the bundle is missing, unsafe (a link, or a path outside it), or does not match its manifest.
    """
    path = locate(bundle)
    manifest = read_manifest(path)
    receipts = Receipts(path, use=trust_receipts)
    for file in manifest.files:
        found = stamp(plain_file(path, file))
        locations = receipts.locations(file, found)
        if locations is not None:
            progress(file, file.size)
        else:
            digest = _hash(path, file, progress)
            if digest != file.sha256:
                raise BundleError(
                    f"{path / file.path} has sha256 {digest[:12]}…, its manifest says {file.sha256[:12]}…: "
                    "copy or build the bundle again"
                )
            locations = _locations(path, manifest, file)
            receipts.add(file, found, locations)
        for part in manifest.parts.values():
            if locations and file in part.files:
                check_locations(path, part, file.path, locations)
    receipts.save()
    return Bundle(path, manifest)


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


def locate(bundle: str | os.PathLike[str]) -> Path:
    """Resolve a path or name to the bundle's folder; recovers a bundle that a killed build had moved aside."""
    path = Path(os.path.realpath(find_bundle(bundle)))
    recover_abandoned(path)
    return path


def _locations(bundle: Path, manifest: Manifest, file: File) -> tuple[str, ...]:
    """The external data files that a verified file names; none if it is no graph."""
    if not any(is_graph(file.path, part) for part in manifest.parts.values() if file in part.files):
        return ()
    try:
        return external_locations(bundle / file.path)
    except OSError as error:
        raise _unreadable(bundle, file, error) from None
    except ValueError as error:
        raise BundleError(f"{bundle / file.path}: {error}: build the bundle again") from None


def _unreadable(bundle: Path, file: File, error: OSError) -> BundleError:
    return BundleError(
        f"{bundle / file.path} cannot be read ({error.strerror}): copy or build the bundle again"
    )


def _hash(bundle: Path, file: File, progress: Callable[[File, int], None]) -> str:
    try:
        return sha256(bundle / file.path, lambda read: progress(file, read))
    except OSError as error:
        raise _unreadable(bundle, file, error) from None


def plain_file(bundle: Path, file: File) -> os.stat_result:
    """Check that a file is regular, reached through no link, and as large as in the manifest; return its status.

    Raises:
        BundleError: it is missing, unsafe, or has another size.
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
            raise BundleError(
                f"{path} is a symbolic link: bundles have regular files only, copy it with 'cp -rL'"
            )
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path} is not a regular file: build the bundle again")
    if status.st_size != file.size:
        raise BundleError(
            f"{path} has {status.st_size} bytes, its manifest says {file.size}: copy or build the bundle again"
        )
    return status
