"""Run a command that a signal ends at a file operation or at a moment, and look at the files that it left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from sd2rt.engines.bundle.manifest import MANIFEST
from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.bundle.temporary import temporary_of
from sd2rt.engines.errors import BundleError
from sd2rt.engines.onnxruntime.prepared_files import open_prepared_files

_LIMIT_SECONDS = 300.0
# Counts the operations that change a folder, and ends the process before one of them.
_CHILD = """
import os, sys
at, number, root, count_file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], os.open(sys.argv[4], os.O_RDWR)
del sys.argv[1:5]
CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.utime", "os.truncate"}
count = 0
def hook(event, args):
    global count
    if event == "open":
        if not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
    elif event not in CHANGES:
        return
    if isinstance(args[0], int) or not os.fsdecode(args[0]).startswith(root):
        return
    count += 1
    os.pwrite(count_file, b"%8d" % count, 0)
    if count == at:
        os.kill(os.getpid(), number)
sys.addaudithook(hook)
from sd2rt.launch import script
script()
"""


@dataclass(frozen=True, slots=True)
class Workplace:
    """Folders of a group of cases: a cache, outputs, temporary files and a home."""

    root: Path

    def folder(self, name: str) -> Path:
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "SD2RT_CACHE_DIR": str(self.folder("cache")),
            "TMPDIR": str(self.folder("tmp")),
            "HOME": str(self.folder("home")),
            # Caches of matplotlib and PyTorch, which are their own.
            "MPLCONFIGDIR": str(self.root.parent / "matplotlib"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.root.parent / "torchinductor"),
        }


@dataclass(frozen=True, slots=True)
class Ended:
    """An ended command: its exit code (negative: a signal), standard error, operations and seconds."""

    code: int
    err: str
    operations: int
    seconds: float


def run_command(
    place: Workplace,
    *words: object,
    number: signal.Signals = signal.SIGKILL,
    at_operation: int = 0,
    after_seconds: float | None = None,
) -> Ended:
    """Run an sd2rt command, and wait for it and its children.

    Args:
        number: signal that ends it.
        at_operation: number of the operation on files before which it is sent, from 1; 0 for none.
        after_seconds: time at which it is sent; None for none.

    Raises:
        subprocess.TimeoutExpired: the command hangs.
    """
    counts = place.root.parent / "count"
    counts.write_text("0")
    command = [sys.executable, "-P", "-c", _CHILD, str(at_operation), str(int(number)), str(place.root)]
    start = time.monotonic()
    with subprocess.Popen(
        [*command, str(counts), *map(str, words)],
        cwd=place.folder("out"),
        env=place.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            if after_seconds is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(after_seconds)
                child.send_signal(number)
            # Ends when its children, which a kill leaves alive, have closed it too.
            _, err = child.communicate(timeout=_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    return Ended(child.returncode, err, int(counts.read_text()), time.monotonic() - start)


def half_files(place: Workplace) -> list[str]:
    """Files and folders under final names that are not whole; names of temporary ones are not looked at."""
    files = [*place.root.glob("out/**/*"), *place.root.glob("cache/receipts/*")]
    found = [
        str(path.relative_to(place.root))
        for path in sorted(files)
        if not path.is_dir() and not path.name.startswith(".") and not _is_whole(path)
    ]
    for kind, check in (("bundles", _check_bundle), ("full", _check_bundle), ("prepared", _check_prepared)):
        for path in sorted(place.root.glob(f"cache/{kind}/[!.]*")):
            try:
                check(path)
            except BundleError as error:
                found.append(f"{path.relative_to(place.root)}: {error}")
    return found


def leftovers(place: Workplace) -> list[str]:
    """Temporary files, locks and folders of builds that are still there."""
    found = [
        str(path.relative_to(place.root))
        for path in place.root.rglob("*")
        if temporary_of(path.name) is not None
        or (path.name.startswith(".") and path.suffix in (".lock", ".old", ".building", ".shared"))
    ]
    return sorted(found + [f"tmp/{path.name}" for path in place.folder("tmp").iterdir()])


def _is_whole(path: Path) -> bool:
    try:
        match path.suffix:
            case ".png":
                with Image.open(path) as image:
                    image.load()
            case ".svg":
                ElementTree.parse(path)
            case ".json":
                json.loads(path.read_bytes())
    except (OSError, ValueError, SyntaxError):
        return False
    return True


def _check_bundle(path: Path) -> None:
    if (path / MANIFEST).exists() or any(path.iterdir()):
        open_bundle(path, trust_receipts=False)


def _check_prepared(path: Path) -> None:
    if (opened := open_prepared_files(path, trust_receipts=False)) is not None:
        opened.files.close()
