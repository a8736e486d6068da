"""Commands open no connection, and write only to the cache, the outputs and the temporary folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_CALLS = "socket,connect,sendto,sendmsg,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat"
_PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')
_WRITES = re.compile(
    r"\b(?:mkdir|mkdirat|rename|renameat|renameat2|link|linkat|creat)\(|O_WRONLY|O_RDWR|O_CREAT"
)

_UNSET = {
    *("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "CI"),
    # Folders that the user, or torch in this process, has chosen.
    *("XDG_CACHE_HOME", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR"),
}


@pytest.fixture(scope="module")
def strace() -> str:
    """The tracer, where this process may use it."""
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed")
    if subprocess.run([found, "-o", os.devnull, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("strace may trace no process here")
    return found


def traced(strace: str, folder: Path, *words: object, code: str = "") -> list[str]:
    """Run a command in ``folder`` with a home of its own; return its calls on sockets, and writes elsewhere."""
    for name in ("home", "cache", "tmp", "out"):
        (folder / name).mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in _UNSET}
    environment |= {
        "HOME": str(folder / "home"),
        "SD2RT_CACHE_DIR": str(folder / "cache"),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    python = [sys.executable, "-P", *(["-c", code] if code else ["-m", "sd2rt", *map(str, words)])]
    child = subprocess.run(
        [strace, "-f", "-qq", "--seccomp-bpf", "-e", f"trace={_CALLS}", "-o", folder / "trace", *python],
        cwd=folder / "out",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert not any((folder / "home").iterdir())
    return [line for line in (folder / "trace").read_text().splitlines() if not _is_expected(line, folder)]


def _is_expected(line: str, folder: Path) -> bool:
    paths = _PATH.findall(line)
    if "AF_UNIX" in line:
        # The C library asks a daemon of this machine for the user's name.
        return True
    if re.search(r"\b(?:socket|connect|sendto|sendmsg)\(", line):
        return False
    if not _WRITES.search(line):
        return True
    inside = tuple(f"{folder / name}" for name in ("cache", "tmp", "out"))
    return all(path.startswith((*inside, "/dev/", "/proc/")) or not path.startswith("/") for path in paths)


def test_commands(strace: str, small_bundle: Path, tmp_path: Path) -> None:
    """A relative path is one in the folder of outputs, where the commands run."""
    steps = ("--steps", "2", "--threads", "1")
    for words in (
        ("inspect", small_bundle),
        ("prepare", small_bundle),
        ("run", small_bundle, "a", *steps, "--output", "images"),
        ("verify", small_bundle),
        ("bench", small_bundle, *steps, "--repetitions", "1", "--output", "bench.json"),
    ):
        assert traced(strace, tmp_path, *words) == [], words


def test_openvino(strace: str, small_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino_telemetry")
    words = ("run", small_bundle, "a", "--steps", "2", "--threads", "1", "--backend", "openvino")
    assert traced(strace, tmp_path, *words) == []


def test_a_build(strace: str, tmp_path: Path) -> None:
    found = traced(strace, tmp_path, "build", "demo")
    # urllib3 tests while it is imported whether this machine has IPv6: it binds a socket, and connects to nothing.
    assert [line for line in found if "socket(AF_INET6, SOCK_STREAM" not in line] == []


def test_a_session_that_lives_on(strace: str, small_bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime looks its host up seconds after the first session; its files are made at once."""
    code = f"""
import time
from sd2rt import Pipeline
with Pipeline.open({str(small_bundle)!r}, threads=1) as pipe:
    pipe("a", num_inference_steps=1)
    time.sleep(2)
"""
    assert traced(strace, tmp_path, code=code) == []
