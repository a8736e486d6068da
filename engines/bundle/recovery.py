"""Recover a bundle that a killed build had moved aside."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sd2rt.engines.bundle.file_lock import FileLock


def recover(target: Path) -> None:
    """Restore a bundle that a killed build had moved aside but not replaced. No build may be running."""
    old = target.parent / f".{target.name}.old"
    if not os.path.isdir(old):
        return
    if os.path.exists(target):
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(target)


def recover_abandoned(target: Path) -> None:
    """Call :func:`recover` and remove the lock file of a killed build, unless a build is running; for readers."""
    if not any(os.path.lexists(target.parent / f".{target.name}.{suffix}") for suffix in ("old", "lock")):
        return
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        if lock.acquire():
            recover(target)
    except OSError:
        return
    finally:
        lock.release()
