"""Contents of the cache directory: bytes of each place, its own and shared, and what nothing can use any more."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sd2rt.engines.bundle import shared_files
from sd2rt.engines.bundle.cache import cache_dir, prune_identities
from sd2rt.engines.bundle.file_lock import FileLock
from sd2rt.engines.bundle.private_copy import remove_abandoned
from sd2rt.engines.bundle.receipts import prune_receipts
from sd2rt.engines.bundle.recovery import recover_abandoned
from sd2rt.engines.bundle.temporary import sweep
from sd2rt.engines.errors import MissingDependencyError
from sd2rt.engines.onnxruntime.prepared import prune_prepared
from sd2rt.engines.weights.graph_archive import EXPORTERS, GRAPH_REVISION, GraphArchive

_PURPOSES = {
    "objects": "files that bundles share",
    "graphs": "exported graphs, without weights",
    "prepared": "graphs optimised for this CPU",
    "receipts": "records of verified files",
    "identities": "places of bundles, by identity",
    "pulled": "places of bundles from the Hub, by their ids there",
    "kernels": "kernels of TensorRT for RTX",
    "rebuilt": "engines with LoRAs",
    "timing": "TensorRT's measurements",
    "replaced": "copies of replaced bundles, in use",
}
_BUILDING = ".building"


@dataclass(frozen=True, slots=True)
class Place:
    """A folder of the cache."""

    name: str
    purpose: str
    files: int
    own_bytes: int
    """Bytes that removing it frees."""
    shared_bytes: int
    """Bytes of files that other places have too."""


def places() -> list[Place]:
    """Describe each bundle and each other folder of the cache.

    Raises:
        BundleError: there is no cache directory.
    """
    root = cache_dir()
    found: list[tuple[str, str, dict[tuple[int, int], int], int]] = []
    for name, purpose, folder in _folders(root):
        inodes: dict[tuple[int, int], int] = {}
        files = 0
        for place, _, names in os.walk(folder):
            for file in names:
                with contextlib.suppress(OSError):
                    status = os.lstat(os.path.join(place, file))
                    inodes[status.st_dev, status.st_ino] = status.st_blocks * 512 if file else 0
                    files += 1
        found.append((name, purpose, inodes, files))
    # A file's link in the store alone is no use of it.
    users = Counter(inode for name, _, inodes, _ in found if name != "objects" for inode in inodes)
    return [
        Place(
            name,
            purpose,
            files,
            sum(size for inode, size in inodes.items() if users[inode] == (name != "objects")),
            sum(size for inode, size in inodes.items() if users[inode] > (name != "objects")),
        )
        for name, purpose, inodes, files in found
    ]


def _folders(root: Path) -> Iterator[tuple[str, str, Path]]:
    with contextlib.suppress(OSError):
        for folder in sorted((root / "bundles").iterdir()):
            if os.path.isdir(folder) and not os.path.islink(folder):
                unfinished = folder.name.startswith(".")
                yield f"bundles/{folder.name}", "unfinished" if unfinished else "bundle", folder
    with contextlib.suppress(OSError):
        for folder in sorted(root.iterdir()):
            if folder.name != "bundles" and os.path.isdir(folder):
                yield folder.name, _PURPOSES.get(folder.name, "not known to this version"), folder


def prune() -> dict[str, int]:
    """Remove what nothing can use any more, and return the number of things removed by kind.

    Graphs of other versions of the exporter, receipts and prepared graphs of bundles that are gone, files that no
    bundle links to, and folders of builds that do not run: such a build would have resumed from its folder.

    Raises:
        BundleError: there is no cache directory.
    """
    root = cache_dir()
    remove_abandoned()
    if os.path.isdir(root):
        for folder in (root, *(path for path in root.iterdir() if os.path.isdir(path))):
            sweep(folder)
    removed = {"unfinished": _prune_unfinished(root / "bundles"), "graphs": _prune_graphs(root / "graphs")}
    removed["receipts"] = prune_receipts()
    removed["identities"] = prune_identities()
    # Without ONNX Runtime its version is unknown.
    with contextlib.suppress(MissingDependencyError):
        removed["prepared"] = prune_prepared()
    removed["objects"] = _count_pruned_objects(root / "objects")
    return removed


def _prune_unfinished(bundles: Path) -> int:
    removed = 0
    with contextlib.suppress(OSError):
        for path in sorted(bundles.iterdir()):
            name = path.name.removeprefix(".")
            if name == path.name:
                continue
            target = bundles / name.rpartition(".")[0]
            recover_abandoned(target)
            if not name.endswith(_BUILDING):
                continue
            lock = FileLock(bundles / f".{target.name}.lock")
            try:
                if lock.acquire():
                    shutil.rmtree(path, ignore_errors=True)
                    removed += not os.path.lexists(path)
            finally:
                lock.release()
    return removed


def _prune_graphs(folder: Path) -> int:
    removed = 0
    try:
        installed = {name: importlib.metadata.version(name).partition("+")[0] for name in EXPORTERS}
    except importlib.metadata.PackageNotFoundError:
        # Another environment may have the exporters of any archive.
        installed = None
    for path in sorted(folder.glob("*.zip")) if os.path.isdir(folder) else ():
        with contextlib.suppress(OSError):
            if not _is_usable(path, installed):
                path.unlink()
                removed += 1
    return removed


def _is_usable(path: Path, installed: dict[str, str] | None) -> bool:
    try:
        archive = GraphArchive.read(path.read_bytes())
    except ValueError:
        return False
    return archive.revision == GRAPH_REVISION and installed in (None, dict(archive.exporters))


def _count_pruned_objects(folder: Path) -> int:
    def count() -> int:
        return len(os.listdir(folder)) if os.path.isdir(folder) else 0

    before = count()
    shared_files.prune()
    return before - count()
