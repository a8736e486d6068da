"""Where bundles live by name, and where sd2rt remembers what it has verified."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from sd2rt.engines.errors import BundleError

CACHE_VARIABLE = "SD2RT_CACHE_DIR"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def cache_dir() -> Path:
    """``$SD2RT_CACHE_DIR``, or ``sd2rt`` in the user's cache directory; it need not exist yet."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "sd2rt" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sd2rt"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sd2rt"


def named_bundle(name: str) -> Path:
    """Where the bundle called ``name`` lives, whether or not it is there.

    Raises:
        BundleError: no bundle can have that name.
    """
    if not _NAME.fullmatch(name):
        raise BundleError(f"{name!r} is no name for a bundle: use letters, digits, '.', '_' and '-'")
    return cache_dir() / "bundles" / name


def find_bundle(bundle: str | os.PathLike[str]) -> Path:
    """The folder that a user means: a path if it exists or looks like one, else a name in the store."""
    path = Path(bundle).expanduser()
    if isinstance(bundle, str) and _NAME.fullmatch(bundle) and not path.exists():
        return named_bundle(bundle)
    return path
