"""The kit as calls of at most 64 MiB: archives cut to fit, and the bytes that each call carries.

    python -m benchmarks.gpu.quick.calls [--kit .kit]      bytes of each call and of the present working tree

Ends with 1 where a call is above the limit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LIMIT_BYTES = 64 << 20
"""Limit of a call, working tree included."""
MARGIN_BYTES = 1 << 20
"""Left free for file names and the transfer's own headers."""
CALL = "call.json"
ROOT = Path(__file__).resolve().parents[3]


class OversizedCallError(Exception):
    """A call would carry more than the limit; the message names it with its bytes."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of an archive, carried by one call."""

    archive: str
    index: int
    start: int
    size: int


def tree_bytes(root: Path = ROOT, without: Sequence[str] = ()) -> int:
    """Bytes of the files that travel with every call: tracked, or untracked and not ignored, but absent ones not.

    Args:
        without: folders and files, relative to ``root``, to count as absent.
    """
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = {name for name in subprocess.check_output(command, text=True).split("\0") if name}
    skipped = tuple(f"{folder.rstrip('/')}/" for folder in without)
    paths = [root / name for name in names if not f"{name}/".startswith(skipped)]
    shared = root / "shared"
    paths += [path for path in shared.rglob("*") if path.is_file()] if shared.is_dir() else []
    return sum(path.lstat().st_size for path in paths if path.is_symlink() or path.is_file())


def plan(archives: Mapping[str, int], tree: int, limit: int = LIMIT_BYTES) -> list[list[Piece]]:
    """Cut archives, in order, so that each call is filled before the next begins.

    Args:
        archives: bytes by name.
        tree: bytes that every call carries besides.

    Raises:
        OversizedCallError: the tree leaves no room.
    """
    room = limit - tree - MARGIN_BYTES
    if room <= 0:
        raise OversizedCallError(
            f"the working tree has {tree:,} bytes of the {limit:,} that a call may carry: use git sparse-checkout"
        )
    calls: list[list[Piece]] = [[]]
    free = room
    for name, size in archives.items():
        start = index = 0
        while start < size:
            if not free:
                calls.append([])
                free = room
            taken = min(free, size - start)
            calls[-1].append(Piece(name, index, start, taken))
            start, index, free = start + taken, index + 1, free - taken
    return calls


def write_calls(archives: Mapping[str, Path], calls: Sequence[Sequence[Piece]], kit: Path) -> None:
    """Write ``kit/1``, ``kit/2``... with the parts of each call and a list of them with their hashes."""
    shutil.rmtree(kit, ignore_errors=True)
    counts = {name: sum(piece.archive == name for call in calls for piece in call) for name in archives}
    for number, pieces in enumerate(calls, 1):
        folder = kit / str(number)
        folder.mkdir(parents=True)
        listed = []
        for piece in pieces:
            with archives[piece.archive].open("rb") as stream:
                stream.seek(piece.start)
                content = stream.read(piece.size)
            name = f"{piece.archive}.{piece.index:02d}"
            (folder / name).write_bytes(content)
            sha256 = hashlib.sha256(content).hexdigest()
            listed.append(
                {"file": name, "archive": piece.archive, "parts": counts[piece.archive], "sha256": sha256}
            )
        (folder / CALL).write_text(json.dumps(listed, indent=1) + "\n")


def call_sizes(kit: Path) -> dict[int, tuple[int, list[str]]]:
    """Bytes and file names of each call's folder, by its number."""
    folders = sorted((path for path in kit.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    return {
        int(folder.name): (
            sum(file.stat().st_size for file in folder.iterdir()),
            sorted(file.name for file in folder.iterdir() if file.name != CALL),
        )
        for folder in folders
    }


def check_calls(kit: Path, tree: int, limit: int = LIMIT_BYTES) -> Iterable[str]:
    """A line for each call.

    Raises:
        OversizedCallError: a call is above the limit.
    """
    for number, (size, names) in call_sizes(kit).items():
        total = size + tree
        if total > limit:
            raise OversizedCallError(
                f"call {number} would carry {total:,} bytes ({size:,} of the kit, {tree:,} of the tree), "
                f"above the limit of {limit:,}: pack again for this tree"
            )
        yield f"call {number}: {total:>11,} bytes, kit {size:>11,} ({', '.join(names)})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.quick.calls", description=__doc__)
    parser.add_argument("--kit", type=Path, default=ROOT / ".kit")
    options = parser.parse_args()
    tree = tree_bytes()
    print(f"working tree: {tree:,} bytes; limit of a call: {LIMIT_BYTES:,}")
    try:
        for line in check_calls(options.kit, tree):
            print(line)
    except (OversizedCallError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
