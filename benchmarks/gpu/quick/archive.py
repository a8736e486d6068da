"""A folder as an xz archive, and its unpacking from parts; the standard library alone."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path


def compress(folder: Path, target: Path) -> Path:
    """Write ``folder``'s content as ``target``, by the ``xz`` command on all cores where there is one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if shutil.which("xz") is None:
        with tarfile.open(target, "w:xz") as tar:
            tar.add(folder, ".")
        return target
    with target.open("wb") as out:
        xz = subprocess.Popen(["xz", "-6", "-T0"], stdin=subprocess.PIPE, stdout=out)
        assert xz.stdin is not None
        with tarfile.open(fileobj=xz.stdin, mode="w|") as tar:
            tar.add(folder, ".")
        xz.stdin.close()
    if xz.wait():
        raise RuntimeError(f"xz ended with {xz.returncode}")
    return target


class _Joined(io.RawIOBase):
    """Files read one after another as a single stream."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._streams = [path.open("rb") for path in files]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        while self._streams:
            count = self._streams[0].readinto(buffer)  # type: ignore[arg-type]
            if count:
                return count
            self._streams.pop(0).close()
        return 0


def unpack(parts: Sequence[Path], folder: Path) -> None:
    """Unpack an archive that was cut into ``parts``."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = io.BufferedReader(_Joined(parts), 1 << 20)
    with tarfile.open(fileobj=stream, mode="r|xz") as tar:
        tar.extractall(folder, filter="data")
