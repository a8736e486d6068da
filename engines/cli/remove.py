"""`sd2rt remove`: remove bundles from the cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from sd2rt.engines.bundle import shared_files
from sd2rt.engines.bundle.cache import cache_dir, complete_bundle, named_bundle, require_bundle
from sd2rt.engines.bundle.file_lock import FileLock
from sd2rt.engines.console import print_path
from sd2rt.engines.errors import BuildError, BundleError, RequestError


def remove(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...", help="Bundles, by their names in the cache.", autocompletion=complete_bundle
        ),
    ],
) -> None:
    """Remove bundles from the cache, with what only they use."""
    folders = [_folder(name) for name in dict.fromkeys(names)]
    for folder in folders:
        _remove(folder)
        print_path(folder)
    shared_files.prune()


def _folder(name: str) -> Path:
    """Folder of a bundle in the cache.

    Raises:
        RequestError: it is a path.
        BundleError: there is no such bundle.
    """
    if os.sep in name or name in ("", ".", ".."):
        raise RequestError(f"{name!r} is no name in the cache: remove a folder elsewhere with 'rm -r'")
    folder = named_bundle(name)
    if not os.path.lexists(folder):
        require_bundle(name) if not os.path.exists(name) else None
        raise BundleError(f"there is no bundle {name} in {cache_dir() / 'bundles'}: see 'sd2rt list'")
    return folder


def _remove(folder: Path) -> None:
    """Remove a bundle; pipelines that have it open keep their files.

    Raises:
        BuildError: it is being built, or cannot be removed.
    """
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        if not lock.acquire():
            raise BuildError(f"{folder} is being built: wait for that, or stop it")
        if os.path.islink(folder):
            folder.unlink()
            return
        # Renamed first, so that no half of a bundle is ever found under its name.
        aside = folder.parent / f".{folder.name}.removed"
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        shutil.rmtree(aside)
        shutil.rmtree(folder.parent / f".{folder.name}.building", ignore_errors=True)
    except OSError as error:
        raise BuildError(f"{folder} cannot be removed: {error.strerror or error}") from error
    finally:
        lock.release()
