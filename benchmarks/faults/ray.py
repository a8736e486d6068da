"""Jobs of Ray Data whose driver, or an actor, is killed at any moment.

A killed driver's command is repeated until it succeeds; a job whose actor was killed must finish by itself. Then
every row is there once, with the pixels that `sd2rt batch` without Ray draws, and nothing else is left: no temporary
file, no process that draws or writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.faults.ray_files import KINDS, Images, images_in
from benchmarks.faults.recorder import Outcome, Recorder
from benchmarks.recording.bundle import build_demo

CASES = 24
_LIMIT_SECONDS = 300.0
_MARKER = "SD2RT_FAULTS_RAY"
_AGENTS = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")
"""Ray's own reporters, which try for a minute to reach the others, and touch no file of the job."""
_AGENTS_SECONDS = 90.0
_ACTORS = (b"ray::MapWorker",)
_FILES = {"folder": 34, "parquet": 9, "webdataset": 9}
_STARTING_SECONDS, _FILE_SECONDS = 10.0, 0.5
"""Longest time until a kill: from the start of a command, or after a file."""
_ROWS = [
    *({"prompt": f"a small red circle {number}", "steps": 25} for number in range(30)),
    *({"prompt": "two", "steps": 10, "count": 2} for _ in range(2)),
    *({"prompt": "equal", "steps": 10} for _ in range(4)),
]


@dataclass(frozen=True, slots=True)
class _Place:
    """Folder of a search, with the bundle and the rows."""

    root: Path
    bundle: Path

    def command(self, kind: str, output: Path) -> list[str]:
        words = ["batch", str(self.bundle), str(self.root / "rows.jsonl"), "-o", str(output), "--seed", "7"]
        words += ["--threads", "1", "--quiet"]
        if kind:
            words += ["--ray", "--to", kind, "--rows-per-part", "4"]
        return [sys.executable, "-P", "-m", "sd2rt", *words]

    def start(self, kind: str, output: Path) -> subprocess.Popen[bytes]:
        (self.root / "tmp").mkdir(exist_ok=True)
        environment = os.environ | {_MARKER: str(self.root), "RAY_TMPDIR": str(self.root / "tmp")}
        with (self.root / "errors").open("wb") as errors:
            return subprocess.Popen(
                self.command(kind, output), env=environment, stdout=subprocess.DEVNULL, stderr=errors
            )

    def last_error(self) -> str:
        lines = (self.root / "errors").read_text(errors="replace").strip().splitlines()
        return lines[-1][-300:] if lines else ""


def run(recorder: Recorder, cases: int, seed: int) -> None:
    """Kill drivers in two of three cases, and actors in the others."""
    with tempfile.TemporaryDirectory(prefix="sd2rt-ray-") as name:
        place = _Place(Path(name), build_demo(Path(name)))
        (place.root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _ROWS))
        plain = place.root / "plain"
        assert place.start("", plain).wait(_LIMIT_SECONDS) == 0, place.last_error()
        expected = images_in(plain, "folder")
        _undisturbed(recorder, place, expected)
        for case in range(cases):
            draw = random.Random(f"{seed} {case}")
            kind = draw.choice(KINDS)
            # Before anything is written too, while Ray and the actor start.
            files = draw.randrange(_FILES[kind])
            seconds = draw.uniform(0, _STARTING_SECONDS if files == 0 else _FILE_SECONDS)
            kill = (_DriverKill if case % 3 < 2 else _ActorKill)(files, seconds)
            _case(recorder, place, expected, case, kind, kill)
        left = _processes(place, _AGENTS_SECONDS, ())
        recorder.record("processes at the end", "left behind" if left else "held", "all cases", left)


def _undisturbed(recorder: Recorder, place: _Place, expected: Images) -> None:
    """Run each kind to its end."""
    for kind in KINDS:
        output = place.root / "out"
        code = place.start(kind, output).wait(_LIMIT_SECONDS)
        fault: tuple[Outcome, str] | None = ("exit 1", place.last_error()) if code else None
        fault = fault or _fault_of(place, output, kind, expected)
        recorder.record("undisturbed", fault[0] if fault else "held", kind, fault[1] if fault else "")
        shutil.rmtree(output)


@dataclass(frozen=True, slots=True)
class _DriverKill:
    files: int
    """Number of written files after which the driver is killed."""
    seconds: float
    """Time after that."""
    group: ClassVar[str] = "driver killed"
    codes: ClassVar[tuple[int, ...]] = (0, -signal.SIGKILL)

    def __call__(self, place: _Place, child: subprocess.Popen[bytes], output: Path) -> bool:
        """Kill the command, and return whether it was still running."""
        _wait(child, lambda: _written(output) >= self.files)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(self.seconds)
            return False
        child.kill()
        return True


@dataclass(frozen=True, slots=True)
class _ActorKill(_DriverKill):
    """The same for the actor, once there is one."""

    group: ClassVar[str] = "actor killed"
    codes: ClassVar[tuple[int, ...]] = (0,)

    def __call__(self, place: _Place, child: subprocess.Popen[bytes], output: Path) -> bool:
        """Kill the actor, and return whether there was one."""
        _wait(child, lambda: _written(output) >= self.files and bool(_marked(place, _ACTORS)))
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(self.seconds)
        actors = _marked(place, _ACTORS)
        for actor in actors:
            with contextlib.suppress(ProcessLookupError):
                os.kill(actor, signal.SIGKILL)
        return bool(actors)


def _wait(child: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    """Wait until a condition holds or a process has ended.

    Raises:
        subprocess.TimeoutExpired: neither comes.
    """
    deadline = time.monotonic() + _LIMIT_SECONDS
    while child.poll() is None and not condition():
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(child.args, _LIMIT_SECONDS)
        time.sleep(0.02)


def _written(output: Path) -> int:
    """Count the finished images or parts."""
    return len([path for path in output.glob("*-*") if not path.name.startswith(".")])


def _case(
    recorder: Recorder,
    place: _Place,
    expected: Images,
    case: int,
    kind: str,
    kill: _DriverKill,
) -> None:
    output = place.root / "out"
    name = f"{case}: {kind}, {kill.seconds:.2f} s after {kill.files} files"
    child = place.start(kind, output)
    try:
        hit = kill(place, child, output)
        code = child.wait(_LIMIT_SECONDS)
        fault: tuple[Outcome, str] | None = None
        if code not in kill.codes:
            fault = ("exit 1", f"exit {code}: {place.last_error()}")
        elif code:
            # At once: actors of the killed job may still be writing.
            code = place.start(kind, output).wait(_LIMIT_SECONDS)
            fault = ("exit 1", f"the next command: exit {code}: {place.last_error()}") if code else None
        fault = fault or _fault_of(place, output, kind, expected)
    except subprocess.TimeoutExpired:
        child.kill()
        fault = ("hang", place.last_error())
    if fault is None and (left := _processes(place, 30, _AGENTS)):
        fault = ("left behind", left)
    recorder.record(kill.group, fault[0] if fault else "held", name, fault[1] if fault else _note(hit))
    shutil.rmtree(output, ignore_errors=True)


def _note(hit: bool) -> str:
    return "killed" if hit else "had ended"


def _fault_of(place: _Place, output: Path, kind: str, expected: Images) -> tuple[Outcome, str] | None:
    try:
        found = images_in(output, kind)
    except (OSError, ValueError, KeyError) as error:
        return "wrong", f"{type(error).__name__}: {error}"
    if found != expected:
        lost, more = len(expected.keys() - found.keys()), len(found.keys() - expected.keys())
        return "wrong", f"{lost} images lost, {more} more, of {len(expected)}; others may differ"
    hidden = [path.name for path in output.iterdir() if path.name.startswith(".")]
    return ("left behind", ", ".join(hidden)) if hidden else None


def _marked(place: _Place, names: tuple[bytes, ...], but: bool = False) -> list[int]:
    """Return the search's processes whose names begin with one of ``names``, or with none of them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{_MARKER}={place.root}\0".encode() not in (path / "environ").read_bytes():
                continue
            if (path / "cmdline").read_bytes().startswith(names) != but:
                found.append(int(path.name))
    return found


def _processes(place: _Place, seconds: float, but: tuple[bytes, ...]) -> str:
    """Wait for the search's processes to end, and name those that do not."""
    deadline = time.monotonic() + seconds
    while (left := _marked(place, but, but=True)) and time.monotonic() < deadline:
        time.sleep(0.1)
    names = []
    for number in left:
        with contextlib.suppress(OSError):
            names.append(
                Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:60].strip()
            )
    return ", ".join(names)
