"""Commands that are killed or terminated at any file operation or moment, and full disks.

After a kill, nothing half written has a final name, and the same command works and leaves nothing behind. A
terminated command leaves nothing behind itself. On a full disk a command says so in one line, and leaves nothing.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.full_disk import full_disks
from benchmarks.faults.killed import Ended, Workplace, half_files, leftovers, run_command
from benchmarks.faults.recorder import Outcome, Recorder

CASES = 165
_STEPS = ("--steps", "2", "--threads", "1", "--sampler", "euler")


@dataclass(frozen=True, slots=True)
class Command:
    """A command to be killed.

    Attributes:
        share: cases of a hundred.
        words: its arguments.
        moments: fraction of the cases at a random moment; the others are at a random file operation.
        forget: removes what an earlier case finished.
    """

    group: str
    share: int
    words: Callable[[Workplace], tuple[object, ...]]
    moments: float
    forget: Callable[[Workplace], None]


def _remove(*names: str) -> Callable[[Workplace], None]:
    def remove(place: Workplace) -> None:
        for name in names:
            path = place.root / name
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    return remove


_COMMANDS = (
    Command(
        "run while saving",
        35,
        lambda place: ("run", "demo", "a", "--seed", 5, "--count", 2, *_STEPS, "-o", place.root / "out"),
        0.1,
        _remove("cache/receipts", "out"),
    ),
    Command("prepare", 27, lambda place: ("prepare", "demo"), 0.5, _remove("cache/prepared")),
    Command(
        "samplers --plot",
        18,
        lambda place: ("samplers", "euler", "--plot", place.root / "out/plot.svg"),
        0.2,
        _remove("out"),
    ),
    Command(
        "bench",
        8,
        lambda place: (
            *("bench", "demo", *_STEPS, "--repetitions", 1, "--warmup", 0),
            *("-o", place.root / "out/bench.json", "--profile", place.root / "out/trace.json"),
        ),
        0.5,
        _remove("out"),
    ),
    Command("build", 6, lambda place: ("build", "demo"), 0.4, _remove("cache/bundles", "cache/objects")),
)


def run(recorder: Recorder, cases: int, seed: int) -> None:
    """Kill commands in about 94 of a hundred cases, and fill disks in the others."""
    with tempfile.TemporaryDirectory(prefix="sd2rt-kill-") as name:
        place = Workplace(Path(name) / "place")
        built = run_command(place, "build", "demo")
        assert built.code == 0, built.err
        counts = [max(1, cases * command.share // 100) for command in _COMMANDS]
        for command, count in zip(_COMMANDS, counts, strict=True):
            _kill(recorder, command, count, place, random.Random(f"{seed} {command.group}"))
        built = run_command(place, "build", "demo")
        assert built.code == 0, built.err
        full_disks(recorder, max(1, cases - sum(counts)), place)


def _kill(recorder: Recorder, command: Command, count: int, place: Workplace, draw: random.Random) -> None:
    words = command.words(place)
    command.forget(place)
    place.folder("out")
    whole = run_command(place, *words)
    assert whole.code == 0, whole.err
    for case in range(count):
        shutil.rmtree(place.folder("tmp"))
        command.forget(place)
        place.folder("out")
        number = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        operation, moment = 0, None
        if draw.random() < command.moments:
            moment = draw.uniform(0, whole.seconds)
            name = f"{case}: {number.name} after {moment:.2f} of {whole.seconds:.2f} s"
        else:
            operation = draw.randint(1, whole.operations)
            name = f"{case}: {number.name} at operation {operation} of {whole.operations}"
        try:
            ended = run_command(place, *words, number=number, at_operation=operation, after_seconds=moment)
            fault = _fault_after(ended, number, place)
            if fault is None:
                fault = _fault_of_next(run_command(place, *words), place)
        except subprocess.TimeoutExpired:
            recorder.record(command.group, "hang", name)
            continue
        if fault is None:
            recorder.record(command.group, "held", name)
        else:
            recorder.record(command.group, fault[0], name, fault[1])


_Fault = tuple[Outcome, str] | None


def _fault_after(ended: Ended, number: signal.Signals, place: Workplace) -> _Fault:
    """Return the fault of a command that a signal ended, or that had finished before."""
    allowed = {0, -signal.SIGKILL} if number == signal.SIGKILL else {0, 128 + number, -number}
    if ended.code not in allowed:
        return "exit 1", f"exit {ended.code}: {ended.err.strip()[-200:]}"
    if half := half_files(place):
        return "left behind", f"half written: {half}"
    # Before Python runs its first line there is no handler, and nothing to clean up.
    if number == signal.SIGTERM and (left := _of_this_command(place)):
        return "left behind", f"after SIGTERM: {left}"
    return None


def _of_this_command(place: Workplace) -> list[str]:
    # A build keeps its finished parts, from which the next one resumes.
    return [name for name in leftovers(place) if ".building" not in name]


def _fault_of_next(ended: Ended, place: Workplace) -> _Fault:
    if ended.code != 0:
        return "exit 1", f"the next command: exit {ended.code}: {ended.err.strip()[-200:]}"
    if half := half_files(place):
        return "wrong", f"after the next command: {half}"
    if left := leftovers(place):
        return "left behind", f"after the next command: {left}"
    return None
