"""The first lines of the command, in processes: interrupts, limits of memory, and its standard streams."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SD2RT = Path(sys.executable).parent / "sd2rt"
FAST = ("--steps", "1", "--threads", "1", "--seed", "5")

COMMANDS = {"script": [str(SD2RT)], "module": [sys.executable, "-P", "-m", "sd2rt"]}

SITE = """
import sys
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            import os
            os.kill(os.getpid(), {signal})
sys.meta_path.insert(0, Stop())
"""


def run(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, **options}
    return subprocess.run([str(word) for word in words], check=False, **options)


@pytest.mark.parametrize("kind", COMMANDS)
@pytest.mark.parametrize(
    "name", ["sd2rt.launch", "sd2rt.engines.errors", "sd2rt.runtime.cli.main", "typer", "pydantic", "numpy"]
)
def test_interrupt_while_a_module_is_imported(
    kind: str, name: str, small_bundle: Path, tmp_path: Path
) -> None:
    if name == "sd2rt.launch":
        # The first moment that Python can find an interrupt in our lines: the first import of the first function.
        name = "signal"
    (tmp_path / "sitecustomize.py").write_text(SITE.format(name=name, signal=2))
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    child = run(*COMMANDS[kind], "run", small_bundle, "a", *FAST, env=env, cwd=tmp_path)
    assert (child.returncode, child.stdout, child.stderr) == (130, "", "sd2rt: interrupted\n")


@pytest.mark.parametrize("name", ["sd2rt.engines.errors", "sd2rt.runtime.cli.main", "numpy"])
@pytest.mark.parametrize(
    ("number", "line"), [(15, "terminated"), (1, "terminated: its terminal was closed")], ids=["term", "hup"]
)
def test_termination_while_a_module_is_imported(
    name: str, number: int, line: str, small_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE.format(name=name, signal=number))
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    child = run(SD2RT, "run", small_bundle, "a", *FAST, env=env, cwd=tmp_path)
    assert (child.returncode, child.stdout, child.stderr) == (128 + number, "", f"sd2rt: {line}\n")


def test_hang_ups_stay_ignored(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)" + SITE.format(name="typer", signal=1)
    )
    child = run(SD2RT, "--version", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (child.returncode, child.stderr) == (0, "")


def test_ignored_interrupts_stay_ignored(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)" + SITE.format(name="typer", signal=2)
    )
    child = run(SD2RT, "--version", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (child.returncode, child.stderr) == (0, "")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("megabytes", [100, 250, 700])
def test_little_address_space(small_bundle: Path, tmp_path: Path, backend: str, megabytes: int) -> None:
    kibibytes = megabytes * 1_000_000 // 1024
    limited = f'ulimit -v {kibibytes}; exec "$@"'
    words = (SD2RT, "run", small_bundle, "a", *FAST, "--backend", backend)
    child = run("sh", "-c", limited, "sh", *words, cwd=tmp_path)
    assert (child.returncode, child.stdout) == (5, ""), child.stderr
    assert child.stderr.startswith(f"sd2rt: the address space is limited to {megabytes} MB, and ")
    assert child.stderr.endswith("MB: raise the limit (ulimit -v)\n")
    assert child.stderr.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "cp1252:strict"])
@pytest.mark.parametrize(
    "folder", [b"plain", "Äpfel-灯台".encode(), b"\xff\xfe"], ids=["plain", "wide", "bytes"]
)
def test_a_saved_image_is_success_in_any_encoding(
    small_bundle: Path, tmp_path: Path, encoding: str, folder: bytes
) -> None:
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    name = os.fsdecode(folder)
    words = [str(word) for word in (SD2RT, "run", small_bundle, "a", *FAST, "-o", name)]
    child = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, check=False)
    assert (child.returncode, child.stderr) == (0, b"")
    assert child.stdout.count(b"\n") == 1
    assert (tmp_path / name / "5.png").is_file()
    if encoding in ("ascii", "utf-8"):
        assert child.stdout == folder + b"/5.png\n"


@pytest.mark.parametrize("words", [("a", "--clip-skip", "99"), ("a " * 100,)], ids=["refused", "warned"])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
def test_full_standard_error(small_bundle: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        child = run(
            SD2RT, "run", small_bundle, *words, *FAST,
            stderr=full, stdout=subprocess.PIPE, capture_output=False, cwd=tmp_path,
        )  # fmt: skip
    assert (child.returncode, child.stdout) == ((2, "") if "--clip-skip" in words else (0, "5.png\n"))


def test_standard_error_without_a_reader(small_bundle: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    child = run(SD2RT, "verify", "./nowhere", stderr=write, capture_output=False, cwd=tmp_path)
    os.close(write)
    assert child.returncode == 3


@pytest.mark.parametrize(
    "words", [("run", "{}", "a", *FAST), ("inspect", "./nowhere"), ("run", "x", "a", "-o", "y.png")]
)
def test_working_directory_that_is_gone(small_bundle: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = [str(SD2RT), *(word.format(small_bundle) for word in words)]
    child = run("sh", "-c", f'cd "{gone}"; rmdir "{gone}"; exec "$@"', "sh", *command)
    assert child.returncode == 2, child.stderr
    assert child.stderr == (
        "sd2rt: the working directory is gone or cannot be read: change to another folder\n"
    )
