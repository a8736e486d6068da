"""Give hostile files, streams and options to the readers and commands that take such input.

Each must be refused in one line with the right exit code, or read right, within limits of time and memory; a pickle's
code must not run. Files are read in a child process, streams and options by commands.
"""

from __future__ import annotations

import itertools
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.hostile_files import folders, pickles, pictures, weights
from benchmarks.faults.hostile_files.case import EXIT_CODES, Case, Cases
from benchmarks.faults.hostile_reader import HostileReader
from benchmarks.faults.recorder import Outcome, Recorder
from benchmarks.recording.bundle import build_demo
from sd2rt.engines.printable import printable

CASES = 4500
LIMIT_SECONDS = 30.0
LIMIT_BYTES = 1536 << 20
"""Growth of the reading process: the largest picture allowed has 8192x8192 pixels, and is converted once."""
_COMMAND_SECONDS = 90.0
_COMMAND_BYTES = 2 << 30
_MESSAGE_LIMIT = 1000


def files(seed: int, made: folders.Folders) -> Cases:
    """All files, and pictures at random without end."""
    yield from pickles.with_code()
    yield from pickles.with_claims()
    yield from weights.headers(seed, 50)
    yield from made.json_files()
    yield from made.claims()
    yield from made.devices()
    yield from pictures.made()
    yield from pictures.texts(seed, 100)
    yield from pictures.damaged(seed, sys.maxsize)


def run(recorder: Recorder, cases: int, seed: int) -> None:
    """Run ``cases`` files, after all streams and options."""
    from sd2rt.export.testing.folder_writer import write_demo

    with tempfile.TemporaryDirectory(prefix="sd2rt-faults-") as name:
        scratch = Path(name)
        os.environ["SD2RT_CACHE_DIR"] = str(scratch / "cache")
        bundle = build_demo(scratch)
        for command in commands(bundle, scratch):
            recorder.record(command.group, *run_command(command))
        checkpoint = write_demo(scratch / "checkpoint", "demo")
        made = folders.Folders(checkpoint, bundle)
        with HostileReader() as reader:
            for case in itertools.islice(files(seed, made), cases):
                recorder.record(case.group, *run_file(reader, case, scratch))


def run_file(reader: HostileReader, case: Case, scratch: Path) -> tuple[Outcome, str, str]:
    """Make a case's file and read it; returns the outcome, the case and a detail."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        answer = reader.read(case.reader, case.make(folder), LIMIT_SECONDS)
        if (folder / pickles.MARKER).exists():
            return "wrong", case.name, "its code ran"
    outcome, detail = _judged(case, answer)
    return outcome, case.name, detail


def _judged(case: Case, answer: dict[str, Any] | None) -> tuple[Outcome, str]:
    if answer is None:
        return "hang", f"over {LIMIT_SECONDS:g} seconds"
    if answer["peak"] > LIMIT_BYTES:
        return "memory", f"{answer['peak'] >> 20} MiB"
    if "value" in answer:
        return ("held" if case.may_be_read else "wrong"), f"read: {answer['value']}"
    message = printable(answer["message"])
    detail = f"{answer['error']}: {message[:200]}"
    if answer["code"] != EXIT_CODES[case.reader]:
        return "exit 1", detail
    if len(message) > _MESSAGE_LIMIT:
        return "wrong", f"a message of {len(message)} characters: {detail}"
    return "held", detail


@dataclass(frozen=True, slots=True)
class Command:
    """A command with a hostile stream or option.

    Args:
        code: its exit status; None if it is interrupted once it has saved an image.
        source: command whose output is its standard input.
    """

    group: str
    name: str
    words: tuple[str, ...]
    code: int | None
    source: str = ""


def commands(bundle: Path, scratch: Path) -> Iterator[Command]:
    """Commands with streams that do not end, and with options that are too large."""
    starts = {
        "png": pictures.png(4, 4)[:-12],
        "large png": pictures.png(8192, 8192)[:-12],
        "jpeg": pictures.encoded("JPEG", {})[:-2],
        "webp": pictures.encoded("WEBP", {}),
        "gif": pictures.encoded("GIF", {}),
    }
    for name, content in starts.items():
        (scratch / name).write_bytes(content)
    endless = {
        **{name: f"cat '{scratch / name}' /dev/zero" for name in starts},
        "zeros": "cat /dev/zero",
        "random bytes": "cat /dev/urandom",
        "lines": "yes",
    }
    model, quick = str(bundle), ("--steps", "1", "-q")
    words: tuple[str, ...]
    for name, source in endless.items():
        for option in ("--image", "--mask", "--depth", "--from"):
            words = ("run", model, "a", option, "-", *quick)
            yield Command("streams", f"{option} {name}", words, 2, source)
    for name, source in endless.items():
        yield Command("streams", f"prompts {name}", ("run", model, "-", *quick), 2, source)
    yield Command("streams", "one long prompt", ("run", model, "-", *quick), 2, "yes | tr -d '\\n'")
    for kind in ("run", "bench"):
        prompt = ("a",) * (kind == "run")
        for threads in ("1025", "100000", str(10**9), str(10**30)):
            words = (kind, model, *prompt, "--threads", threads)
            yield Command("options", f"{kind} --threads {threads}", words, 2)
    for count in (10**7, 10**12):
        words = ("run", model, "a", "--count", str(count), "--steps", "1", "--seed", "0")
        yield Command("options", f"--count {count}", words, None)


def run_command(command: Command) -> tuple[Outcome, str, str]:
    """Run a command in an empty folder; returns the outcome, the case and a detail."""
    with tempfile.TemporaryDirectory() as folder:
        return _command(command, Path(folder))


def _command(command: Command, folder: Path) -> tuple[Outcome, str, str]:
    source = subprocess.Popen(
        ["sh", "-c", command.source or ":"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with (folder / "errors").open("wb") as errors:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "sd2rt", *command.words],
            stdin=source.stdout,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=folder,
            preexec_fn=_limit,
        )
    if source.stdout is not None:
        source.stdout.close()
    try:
        status, usage = _wait(child, lambda: command.code is None and len(list(folder.glob("*.png"))) > 3)
    finally:
        os.killpg(source.pid, signal.SIGKILL)
        source.wait()
    lines = (folder / "errors").read_text(errors="replace").strip().splitlines()
    detail = f"{status}: {lines[-1][:200] if lines else ''}"
    if usage is None:
        return "hang", command.name, detail
    if usage.ru_maxrss << 10 > _COMMAND_BYTES:
        return "memory", command.name, f"{usage.ru_maxrss >> 10} MiB, {detail}"
    if command.code is None:
        return ("held" if status == 130 else "exit 1"), command.name, f"{usage.ru_maxrss >> 10} MiB, {detail}"
    if status != command.code:
        return ("exit 1" if status == 1 else "wrong"), command.name, detail
    return ("held" if len(lines) == 1 else "wrong"), command.name, detail


def _wait(
    child: subprocess.Popen[bytes], interrupts: Callable[[], bool]
) -> tuple[int, resource.struct_rusage | None]:
    """Wait for a child; interrupts it when told, and kills it after the limit, without usage then."""
    deadline, interrupted = time.monotonic() + _COMMAND_SECONDS, False
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode, usage
        if time.monotonic() > deadline:
            child.kill()
            child.wait()
            return -signal.SIGKILL, None
        if not interrupted and interrupts():
            child.send_signal(signal.SIGINT)
            interrupted = True
        time.sleep(0.02)


def _limit() -> None:
    # A search in the background ignores interrupts, which a child inherits.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
