"""`sd2rt run` in processes of its own: from their start to the PNG, with the memory that they took."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import typer

from sd2rt.engines.errors import EngineError
from sd2rt.runtime.bench.memory import peak_rss_bytes
from sd2rt.runtime.bench.summary import digits, summary
from sd2rt.runtime.bench.workload import Size, Workload

_UNCERTAIN_BYTES = 4 << 20
"""The kernel counts a process's pages on each processor and adds them up late."""
_PATIENCE_SECONDS = 2.0


class Child(NamedTuple):
    """A process that has ended well."""

    seconds: float
    """From before it was made until it was gone."""
    peak_rss_bytes: int | None
    """None where the kernel cannot tell its peak from that of the process which made it."""


def first_images(
    bundle: str,
    workload: Workload,
    size: Size,
    options: list[str],
    repetitions: int,
    told: Callable[[int], None],
) -> dict[str, Any]:
    """Measure the first image of a process, ``repetitions`` times after a first one.

    It is the first that fills caches: of files, of compiled modules, of verified hashes. It is reported apart. Before
    this process has opened anything, as its own peak would hide a child's.

    Args:
        options: of `sd2rt run`, for device, backend, precision and threads.
        told: called before each.

    Raises:
        EngineError: a child was killed.
        typer.Exit: a child failed; it has told why.
    """
    with tempfile.TemporaryDirectory(prefix="sd2rt-bench-") as name:
        folder = Path(name)
        command = [
            # Without -P the working directory would come before what is installed.
            *(sys.executable, "-P", "-m", "sd2rt", "run", "--quiet"),
            *workload.options(size, folder),
            *options,
            *(f"--output={folder / 'first.png'}", "--", bundle, workload.prompt),
        ]
        children = []
        for turn in range(repetitions + 1):
            told(turn)
            children.append(run_child(command))
    first, *found = children
    peaks = [child.peak_rss_bytes for child in found if child.peak_rss_bytes is not None]
    return {
        "width": size[0],
        "height": size[1],
        "warmup_seconds": digits(first.seconds),
        "seconds": summary(child.seconds for child in found),
        "peak_rss_bytes": summary(peaks) if peaks else None,
    }


def run_child(command: list[str]) -> Child:
    """Run a command to its end; see :func:`first_images` for what is raised."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        _end(child)
        raise
    seconds = time.perf_counter() - start
    # wait4 has reaped it, which Popen is to know.
    child.returncode = code = os.waitstatus_to_exitcode(status)
    if code < 0:
        raise EngineError(
            f"'sd2rt run' was killed by {signal.Signals(-code).name}: see whether memory was short"
        )
    if code > 0:
        raise typer.Exit(code)
    # Until it executes its own program, a child has the memory of the process that made it.
    peak = usage.ru_maxrss * 1024
    return Child(seconds, peak if peak > peak_rss_bytes() + _UNCERTAIN_BYTES else None)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Have a child stop; a terminal has told it already, and it may be putting things in order."""
    try:
        child.wait(timeout=_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
