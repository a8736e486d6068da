"""The cache directory, with named bundles and receipts of verified files; bundles by name, Hub id and identity."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from pathlib import Path

from sd2rt.engines.bundle.files import atomic_write
from sd2rt.engines.bundle.model_kinds import DEMO_NAMES
from sd2rt.engines.errors import BundleError
from sd2rt.engines.json_text import parse_json
from sd2rt.engines.near_matches import did_you_mean
from sd2rt.engines.regular_file import read_regular

CACHE_VARIABLE = "SD2RT_CACHE_DIR"
MANIFEST = "bundle.json"
MAX_MANIFEST_BYTES = 64 << 20
"""A manifest has some 40 kilobytes, and a few more for each engine."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_ID = re.compile(rf"({_NAME.pattern})/({_NAME.pattern})")
_PULLED = re.compile(rf"{_HUB_ID.pattern}(@\S+)?")
_IDENTITY = re.compile(r"[0-9a-f]{64}")
_MOST_NAMED = 20


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


def cached_bundles() -> list[str]:
    """Names of the bundles in the cache, sorted."""
    try:
        folder = cache_dir() / "bundles"
        names = os.listdir(folder)
    except (OSError, BundleError):
        return []
    return sorted(n for n in names if _NAME.fullmatch(n) and os.path.isfile(folder / n / MANIFEST))


def complete_bundle(incomplete: str) -> list[str]:
    """Bundles in the cache, and demos, by the beginning of their name, for shells to complete."""
    names = dict.fromkeys([*cached_bundles(), *DEMO_NAMES])
    return [name for name in names if name.startswith(incomplete)]


def find_bundle(bundle: str | os.PathLike[str]) -> Path:
    """Resolve a path, a name or a Hub id to a folder, which may not exist.

    A path comes first. A name is one in the cache; so is the id of a repository on the Hub whose bundle was pulled,
    or whose checkpoint was built there.
    """
    # os.path, since pathlib raises for ~ of an unknown user, names that are too long, and loops of links.
    path = os.path.expanduser(bundle)
    if isinstance(bundle, str) and not os.path.exists(path):
        if _NAME.fullmatch(bundle):
            return named_bundle(bundle)
        if (pulled := pulled_bundle(bundle)) is not None:
            return pulled
        if (hub_id := _HUB_ID.fullmatch(bundle)) is not None:
            built = named_bundle(hub_id[2])
            if _source_name(built) == bundle:
                return built
    return Path(path)


def _source_name(bundle: Path) -> object:
    """Name of the checkpoint that a bundle was built from; None if that cannot be read."""
    return _manifest_entry(bundle, "source", "name")


def _manifest_entry(bundle: Path, *keys: str) -> object:
    """An entry of a bundle's manifest, without validation; None if it cannot be read."""
    try:
        entry = parse_json(read_regular(bundle / MANIFEST, MAX_MANIFEST_BYTES))
        for key in keys:
            entry = entry[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry


def require_bundle(bundle: str | os.PathLike[str]) -> None:
    """Check that a bundle that was named, by a name or a Hub id, is there.

    Raises:
        BundleError: it is not; the message has the command that builds it, or near matches and what there is.
    """
    if not isinstance(bundle, str) or os.path.lexists(find_bundle(bundle)):
        return
    if _HUB_ID.fullmatch(bundle):
        name = bundle.rpartition("/")[2]
        raise BundleError(
            f"{bundle} is neither a folder nor a Hub id that was built or pulled: build a checkpoint with "
            f"'sd2rt build {bundle}', or fetch a bundle with 'sd2rt pull {bundle}', then use it by this id or as "
            f"{name}"
        )
    if _PULLED.fullmatch(bundle):
        raise BundleError(f"{bundle} was not pulled: fetch it with 'sd2rt pull {bundle}'")
    if not _NAME.fullmatch(bundle):
        return
    advice = f"build it with 'sd2rt build {bundle}'" if bundle in DEMO_NAMES else advice_on(bundle)
    raise BundleError(f"{find_bundle(bundle)} does not exist: {advice}")


def advice_on(bundle: str) -> str:
    """Say which bundles have a similar name, and which there are."""
    built = cached_bundles()
    names = [*built, *(demo for demo in DEMO_NAMES if demo not in built)]
    meant = did_you_mean(bundle, names)
    listed = ", ".join(name if name in built else f"{name} (not built)" for name in names[:_MOST_NAMED])
    more = f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{meant}there are {listed}{more}; 'sd2rt build CHECKPOINT' builds another"


def remember_bundle(identity: str, folder: Path) -> None:
    """Record the folder of a bundle, to find it by its identity; ignores errors."""
    with contextlib.suppress(OSError, BundleError):
        entry = _index_entry(identity)
        text = json.dumps({"path": str(folder)})
        if not entry.is_file() or entry.read_text(encoding="utf-8") != text:
            entry.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(entry) as temporary:
                temporary.write_text(text, encoding="utf-8")


def remembered_bundle(identity: str) -> Path | None:
    """Folder of the bundle with an identity, as it was last opened or built; None if that is unknown or gone."""
    try:
        return _remembered(_index_entry(identity)) if _IDENTITY.fullmatch(identity) else None
    except BundleError:
        return None


def remember_pull(name: str, folder: Path, build_key: str) -> None:
    """Record the folder of a bundle from the Hub, to find it by ``user/name`` or ``user/name@revision``.

    ``build_key`` is the bundle's: another bundle in that folder later is not the one that was pulled. Ignores errors.
    """
    with contextlib.suppress(OSError, BundleError):
        entry = _pulled_entry(name)
        entry.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(entry) as temporary:
            temporary.write_text(json.dumps({"path": str(folder), "build_key": build_key}), encoding="utf-8")


def pulled_bundle(name: str) -> Path | None:
    """Folder of a bundle pulled as ``user/name`` or ``user/name@revision``; None if missing or replaced."""
    if _PULLED.fullmatch(name) is None:
        return None
    try:
        return _pulled(_pulled_entry(name))
    except BundleError:
        return None


def _pulled(entry: Path) -> Path | None:
    try:
        record = parse_json(read_regular(entry, 1 << 16))
        path, build_key = Path(record["path"]), record["build_key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path if build_key is not None and _manifest_entry(path, "build_key") == build_key else None


def _pulled_entry(name: str) -> Path:
    # A hash, since a branch may have any name, of any length.
    return cache_dir() / "pulled" / f"{hashlib.sha256(name.encode()).hexdigest()}.json"


def remembered_places() -> list[Path]:
    """Folders of all bundles that the index of identities has and that are still there, sorted."""
    return sorted({path for entry in _index() if (path := _remembered(entry)) is not None})


def prune_identities() -> int:
    """Remove bundles that are gone from the indices of identities and Hub ids, and return the number of entries."""
    removed = 0
    stale = [entry for entry in _index() if _remembered(entry) is None]
    with contextlib.suppress(OSError, BundleError):
        stale += [entry for entry in _pulled_entry("").parent.glob("*.json") if _pulled(entry) is None]
    for entry in stale:
        with contextlib.suppress(OSError):
            entry.unlink()
            removed += 1
    return removed


def _index() -> list[Path]:
    try:
        return sorted(_index_entry("").parent.glob("*.json"))
    except (OSError, BundleError):
        return []


def _remembered(entry: Path) -> Path | None:
    try:
        path = parse_json(read_regular(entry, 1 << 16))["path"]
        return Path(path) if os.path.isfile(os.path.join(path, MANIFEST)) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _index_entry(identity: str) -> Path:
    return cache_dir() / "identities" / f"{identity}.json"
