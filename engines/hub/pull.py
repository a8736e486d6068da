"""Fetch a bundle from the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sd2rt.engines.bundle.cache import pulled_bundle, remember_bundle, remember_pull
from sd2rt.engines.bundle.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Manifest,
    parse_manifest,
    read_manifest,
)
from sd2rt.engines.bundle.reader import open_bundle, verify_engines
from sd2rt.engines.bundle.schema import File
from sd2rt.engines.errors import BuildError, BundleError
from sd2rt.engines.hub.arrivals import Arrivals
from sd2rt.engines.hub.client import HubClient, MissingFileError
from sd2rt.engines.hub.repository import Repository

Progress = Callable[[File, int], None]
"""Called with a file and the bytes of it that arrived since the last call; negative if it starts again."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """A bundle from the Hub; ``fresh`` is false if it was already there and was kept."""

    path: Path
    manifest: Manifest
    fresh: bool


def pull(
    repository: Repository,
    target: Path,
    *,
    engines: bool = False,
    replace: bool = False,
    start: Callable[[Manifest], None] = lambda manifest: None,
    progress: Progress = lambda file, count: None,
) -> Pulled:
    """Fetch a bundle into ``target``; its place is taken when all files are there and match the manifest's hashes.

    Files that an interrupted pull has left, and those that other bundles share, are not fetched again. Without a
    network, a bundle that was pulled there before is used.

    Args:
        engines: fetch compiled engines too.
        replace: overwrite a different bundle at ``target``.
        start: called with the manifest before the files are fetched.

    Raises:
        BundleError: the repository, its revision or the Hub is out of reach, or the bundle is damaged.
        BuildError: ``target`` cannot be written, or another bundle is there.
        MissingDependencyError: huggingface_hub is not installed.
    """
    target = target.absolute()
    client = HubClient(repository)
    if client.is_offline and (kept := _kept_offline(repository, target, engines)) is not None:
        return kept
    commit = _commit(client)
    text = client.read(MANIFEST, commit, MAX_MANIFEST_BYTES)
    manifest = parse_manifest(text, f"{MANIFEST} of {repository}")
    if not engines:
        manifest = manifest.model_copy(update={"engines": ()})
    existing, damaged = _existing(target, manifest, replace)
    if existing is not None:
        _remember(repository, commit, target, existing)
        return Pulled(target, existing, fresh=False)
    with Arrivals(target, manifest, replace=replace or damaged) as arrivals:
        start(manifest)
        for file in arrivals.files:
            _fetch(client, commit, arrivals, file, progress)
        arrivals.complete()
    _remember(repository, commit, target, manifest)
    return Pulled(target, manifest, fresh=True)


def _commit(client: HubClient) -> str:
    try:
        return client.commit_of(MANIFEST)
    except MissingFileError:
        raise BundleError(
            f"{client.repository} has no {MANIFEST}, so it is no bundle: if it is a checkpoint, build one with "
            f"'sd2rt build {client.repository.id}'"
        ) from None


def _fetch(client: HubClient, commit: str, arrivals: Arrivals, file: File, progress: Progress) -> None:
    seen = arrivals.arrived_bytes(file)
    progress(file, seen)

    def count(new: int) -> None:
        nonlocal seen
        seen += new
        progress(file, new)

    arrivals.fetch(file, lambda file, partial: client.append(file.path, commit, file.size, partial, count))
    progress(file, file.size - seen)


def _existing(target: Path, manifest: Manifest, replace: bool) -> tuple[Manifest | None, bool]:
    """The manifest at ``target`` if that is the bundle, intact and with its engines; and whether it is damaged.

    Raises:
        BuildError: it has engines that replacing it would lose.
    """
    try:
        existing = read_manifest(target)
    except BundleError:
        return None, False
    if existing.identity != manifest.identity:
        return None, False
    wanted = {entry.file for entry in manifest.engines}
    there = {entry.file for entry in existing.engines}
    try:
        bundle = open_bundle(target)
        if there & wanted:
            verify_engines(bundle)
    except BundleError:
        return None, True
    if wanted <= there:
        return existing, False
    if there - wanted and not replace:
        raise BuildError(
            f"{target} has engines that {len(wanted)} of the Hub would replace: add --force, or choose another "
            "folder with -o"
        )
    return None, True


def _kept_offline(repository: Repository, target: Path, engines: bool) -> Pulled | None:
    folder = pulled_bundle(str(repository))
    if folder is None or os.path.realpath(folder) != os.path.realpath(target):
        return None
    bundle = open_bundle(folder)
    if engines:
        verify_engines(bundle)
    return Pulled(target, bundle.manifest, fresh=False)


def _remember(repository: Repository, commit: str, target: Path, manifest: Manifest) -> None:
    folder = Path(os.path.realpath(target))
    remember_bundle(manifest.identity, folder)
    for name in {repository.id, str(repository), f"{repository.id}@{commit}"}:
        remember_pull(name, folder, manifest.build_key)
