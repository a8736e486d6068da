"""Checkpoints and bundles that all tests share: made once, whichever of the workers is first."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path


class MadeOnce:
    """Makes a file or folder where no worker has, and says where it is. It is read only: it is everyone's.

    A maker works in a folder of its worker's, and what it made is moved into place when it is whole. One that fails
    or is killed leaves nothing, and the kernel lets go of its lock: the next to ask makes it again.
    """

    def __init__(self, shared: Path, own: Path) -> None:
        self.shared, self._own = shared, own

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path:
        """``make`` is given a path that ends in ``name``, which bundles and checkpoints are known by."""
        path = self.shared / name
        path.parent.mkdir(parents=True, exist_ok=True)
        locks = self.shared / "locks"
        locks.mkdir(exist_ok=True)
        with (locks / name.replace("/", "-")).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                unfinished = self._own / name
                unfinished.parent.mkdir(parents=True, exist_ok=True)
                make(unfinished)
                unfinished.rename(path)
        return path
