"""Upload a bundle to the Hub, as one commit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from sd2rt.engines.bundle.manifest import MANIFEST, Manifest
from sd2rt.engines.bundle.reader import open_bundle, verify_engines
from sd2rt.engines.bundle.schema import File
from sd2rt.engines.bundle.writer import BUNDLE_NAMES
from sd2rt.engines.errors import BundleError
from sd2rt.engines.hub.card import CARD, WRITTEN_BY_PUSH, model_card
from sd2rt.engines.hub.client import HubClient, import_hub
from sd2rt.engines.hub.repository import MAIN, Repository

_CARD_BYTES = 1 << 20


def push(
    bundle: str, repository: Repository, *, engines: bool = False, private: bool = False, bars: bool = False
) -> tuple[str, bool]:
    """Upload a verified bundle, and a model card unless the repository has one of its own.

    Missing repositories and branches are created. Files that the Hub has are not sent again, which also resumes an
    interrupted upload. Files of another bundle in the repository are removed from the branch.

    Args:
        bundle: path or name.
        engines: upload compiled engines too.
        private: create the repository as a private one.
        bars: show huggingface_hub's progress bars.

    Returns:
        The URL of the commit, and whether the repository's own model card was kept.

    Raises:
        BundleError: the bundle is damaged, or the Hub is out of reach or refuses the upload.
        MissingDependencyError: huggingface_hub is not installed.
    """
    client = HubClient(repository)
    opened = open_bundle(bundle)
    manifest = opened.manifest
    if engines:
        verify_engines(opened)
    else:
        manifest = manifest.model_copy(update={"engines": ()})
    if client.is_offline:
        raise BundleError(f"HF_HUB_OFFLINE forbids the upload to {repository}: unset it")
    if client.token is None:
        raise BundleError("an upload needs a token of the Hub: log in with 'hf auth login', or set HF_TOKEN")
    with client.errors(MANIFEST), _bars(bars), _unwrapped():
        client.api.create_repo(repository.id, private=private or None, exist_ok=True)
        if repository.revision not in (None, MAIN):
            client.api.create_branch(repository.id, branch=repository.revision, exist_ok=True)
        there = client.api.list_repo_files(repository.id, revision=repository.revision or MAIN)
        keeps_card = CARD in there and not _is_ours(client)
        commit = client.api.create_commit(
            repository.id,
            _operations(opened.path, manifest, repository, there, keeps_card),
            commit_message=f"Upload the bundle {manifest.identity[:12]}",
            revision=repository.revision or MAIN,
        )
    return str(commit.commit_url), keeps_card


def _operations(
    folder: Path, manifest: Manifest, repository: Repository, there: list[str], keeps_card: bool
) -> list[Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    files: tuple[File, ...] = (*manifest.files, *manifest.engine_files)
    new = {MANIFEST, *(file.path for file in files)}
    # bundle.json from the manifest that was verified, in which engines may be left out.
    added: list[Any] = [CommitOperationAdd(MANIFEST, manifest.to_json().encode())]
    added += [CommitOperationAdd(file.path, str(folder / file.path)) for file in files]
    if not keeps_card:
        added.append(CommitOperationAdd(CARD, model_card(manifest, repository).encode()))
    stale = [path for path in there if PurePosixPath(path).parts[0] in BUNDLE_NAMES and path not in new]
    # Only beside a manifest: without one these are files of something else.
    return added + [CommitOperationDelete(path) for path in stale if MANIFEST in there]


def _is_ours(client: HubClient) -> bool:
    """Return whether the repository's model card was written by an earlier upload."""
    revision = client.repository.revision or MAIN
    return WRITTEN_BY_PUSH.encode() in client.read(CARD, revision, _CARD_BYTES)


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    utils = import_hub().utils
    if shown or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise the cause of a RuntimeError: huggingface_hub hides refusals of single files in one."""
    try:
        yield
    except RuntimeError as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from None
