"""What tests share is made by one of them, in whichever process."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from .made_once import MadeOnce

_WORKER = """
import sys, time
from pathlib import Path
from made_once import MadeOnce
def make(path):
    print("making", flush=True)
    time.sleep(float(sys.argv[3]))
    path.mkdir()
    (path / "whole").touch()
path = MadeOnce(Path(sys.argv[1]), Path(sys.argv[2]))("bundles/small", make)
assert (path / "whole").exists()
"""


def worker(shared: Path, own: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _WORKER, str(shared), str(own), str(seconds)]
    return subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True)


def test_one_of_several_processes_makes_it(tmp_path: Path) -> None:
    workers = [worker(tmp_path / "shared", tmp_path / str(number), 0.3) for number in range(3)]
    said = [child.communicate()[0] for child in workers]
    assert [child.returncode for child in workers] == [0, 0, 0]
    assert sorted(said) == ["", "", "making\n"]


def test_a_killed_maker_is_followed_by_the_next(tmp_path: Path) -> None:
    with worker(tmp_path / "shared", tmp_path / "0", 60) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "making\n"
        with worker(tmp_path / "shared", tmp_path / "1", 0) as waiting:
            time.sleep(0.2)
            assert waiting.poll() is None
            killed.kill()
            assert waiting.communicate()[0] == "making\n"
    assert waiting.returncode == 0


def test_a_maker_that_fails_leaves_nothing(tmp_path: Path) -> None:
    once = MadeOnce(tmp_path / "shared", tmp_path / "own")

    def half(path: Path) -> None:
        path.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        once("checkpoints/small.ckpt", half)
    path = once("checkpoints/small.ckpt", lambda path: path.write_text("whole"))
    assert path == once("checkpoints/small.ckpt", half)
    assert path.read_text() == "whole"
