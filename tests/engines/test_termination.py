"""Commands that are terminated (SIGTERM) clean up as after an interrupt, and exit with 143."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..runtime.cli.interrupted import interrupted_after

TERMINATED = (143, "sd2rt: terminated\n")

# Sends itself the signal when the temporary file or folder of a name is created, as by another process at that time.
_AT = """
import os, signal
from sd2rt.engines.bundle import temporary
from sd2rt.launch import script
real = temporary._hold
def hold(path, descriptor):
    held = real(path, descriptor)
    if {name!r} in path.name: os.kill(os.getpid(), signal.SIGTERM)
    return held
temporary._hold = hold
script()
"""


def terminated_at(name: str, *words: object, cwd: Path) -> tuple[int, str]:
    """Exit code and standard error of a command that is terminated while it writes a file of a name."""
    child = subprocess.run(
        [sys.executable, "-c", _AT.format(name=name), *map(str, words)],
        cwd=cwd,
        env={**os.environ, "SD2RT_CACHE_DIR": str(cwd / "cache"), "TMPDIR": str(cwd)},
        capture_output=True,
        text=True,
        check=False,
    )
    return child.returncode, child.stderr.splitlines(keepends=True)[-1]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def test_between_steps(small_bundle: Path, tmp_path: Path) -> None:
    words = ("run", small_bundle, "a", "--steps", "9", "--threads", "1", "--output", tmp_path / "out")
    assert interrupted_after(3, *words, number=signal.SIGTERM) == TERMINATED
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", [".5.png.", ".json."], ids=["image", "receipts"])
def test_while_a_file_is_written(small_bundle: Path, tmp_path: Path, name: str) -> None:
    words = ("run", small_bundle, "a", "--seed", "5", "--steps", "1", "--threads", "1")
    assert terminated_at(name, *words, cwd=tmp_path) == TERMINATED
    assert not [path for path in files(tmp_path) if path.endswith((".part", ".png"))]


def test_prepare(small_bundle: Path, tmp_path: Path) -> None:
    """The folder of the first part is the first in the folder of prepared graphs: 32 hexadecimal digits."""
    assert terminated_at(".part", "prepare", small_bundle, cwd=tmp_path) == TERMINATED
    assert files(tmp_path) == []


def test_bench_in_its_first_image(small_bundle: Path, tmp_path: Path) -> None:
    words = ("bench", small_bundle, "--steps", "1", "--threads", "1", "--repetitions", "1")
    assert terminated_at("sd2rt-bench", *words, cwd=tmp_path) == TERMINATED
    assert files(tmp_path) == []
    assert not [path for path in tmp_path.iterdir() if path.name != "cache"]


def test_termination_is_passed_on(tmp_path: Path) -> None:
    """A child that this process waits for is terminated too, at once."""
    code = """
import subprocess, sys, time
from sd2rt.engines.termination import end_child, interrupt_at
interrupt_at(15, "terminated")
child = subprocess.Popen([sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)"])
try:
    child.wait()
except KeyboardInterrupt:
    end_child(child, grace_seconds=None)
print(child.returncode)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        time.sleep(0.1)
        parent.terminate()
        out, _ = parent.communicate(timeout=60)
    assert out == "-15\n"
