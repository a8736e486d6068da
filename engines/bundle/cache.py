"""The cache directory, which holds named bundles and receipts of verified files."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from sd2rt.engines.errors import BundleError

CACHE_VARIABLE = "SD2RT_CACHE_DIR"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def cache_dir() -> Path:
    """Return ``$SD2RT_CACHE_DIR``, or ``sd2rt`` in the user's cache directory; it may not exist yet.

    Raises:
        BundleError: the variable is not set, and the user has no home directory (as in some containers).
    """
    if configured := os.environ.get(CACHE_VARIABLE):
        return Path(os.path.expanduser(configured))
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches" / "sd2rt"
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "sd2rt"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise BundleError(
            f"this user has no home directory for bundles: set {CACHE_VARIABLE} to a folder"
        ) from None


def named_bundle(name: str) -> Path:
    """Path of the bundle called ``name`` in the cache; it may not exist.

    Raises:
        BundleError: the name is not valid for a bundle.
    """
    if not _NAME.fullmatch(name):
        raise BundleError(f"{name!r} is not a valid bundle name: use letters, digits, '.', '_' and '-'")
    return cache_dir() / "bundles" / name


def find_bundle(bundle: str | os.PathLike[str]) -> Path:
    """Resolve a path or a name: a path if it exists or cannot be a name, otherwise a name in the cache."""
    # os.path, since pathlib raises for ~ of an unknown user, names that are too long, and loops of links.
    path = os.path.expanduser(bundle)
    if isinstance(bundle, str) and _NAME.fullmatch(bundle) and not os.path.exists(path):
        return named_bundle(bundle)
    return Path(path)
