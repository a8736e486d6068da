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
    """``$SD2RT_CACHE_DIR``, or ``sd2rt`` in the user's cache directory; it need not exist yet.

    Raises:
        BundleError: the user has no home directory, as in some containers, and the variable is not set.
    """
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(os.path.expanduser(chosen))
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches" / "sd2rt"
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "sd2rt"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise BundleError(
            f"this user has no home directory to keep bundles in: set {CACHE_VARIABLE} to a folder"
        ) from None


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
    # os.path answers where pathlib raises: for ~ of an unknown user, a name that is too long, a loop of links.
    path = os.path.expanduser(bundle)
    if isinstance(bundle, str) and _NAME.fullmatch(bundle) and not os.path.exists(path):
        return named_bundle(bundle)
    return Path(path)
