"""The wheel of this checkout, built without the network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

_BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


def copied_tree(folder: Path) -> Path:
    """Copy what git tracks or would track, so that building leaves nothing in the checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, folder / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target, follow_symlinks=False)
    return folder


def built_wheel(folder: Path) -> Path:
    """Build the wheel into ``folder`` and return its path."""
    tree = copied_tree(folder / "tree")
    command = [sys.executable, "-P", "-c", _BUILD, str(folder)]
    child = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return folder / child.stdout.splitlines()[-1]
