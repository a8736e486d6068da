"""The wheel and the sdist of this checkout, built without the network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[1]

_BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def tracked_files() -> list[str]:
    """Every file that git tracks or would track, by its path in the checkout."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # A file that was removed and not yet committed is still listed.
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


def built_wheel(folder: Path) -> Path:
    """Build the wheel into ``folder`` and return its path."""
    return _built("build_wheel", folder)


def built_sdist(folder: Path) -> Path:
    """Build the source distribution into ``folder`` and return its path."""
    return _built("build_sdist", folder)


def _built(hook: Literal["build_wheel", "build_sdist"], folder: Path) -> Path:
    # In a copy: building leaves nothing in the checkout.
    tree = folder / "tree"
    for name in tracked_files():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name, follow_symlinks=False)
    command = [sys.executable, "-P", "-c", _BUILD, hook, str(folder)]
    child = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return folder / child.stdout.splitlines()[-1]
