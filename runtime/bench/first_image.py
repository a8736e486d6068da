"""Measure `sd2rt run` in child processes: time from process start to the PNG, and peak memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import typer

from sd2rt.engines.bundle.temporary import scratch_folder
from sd2rt.engines.errors import EngineError
from sd2rt.engines.termination import end_child
from sd2rt.runtime.bench.memory import peak_rss_bytes
from sd2rt.runtime.bench.summary import digits, summary
from sd2rt.runtime.bench.workload import Size, Workload

_UNCERTAIN_BYTES = 4 << 20
"""Uncertainty of peak memory: the kernel counts pages per CPU and sums them with a delay."""
_GRACE_SECONDS = 2.0


class Child(NamedTuple):
    """Measurements of a child process that succeeded."""

    seconds: float
    """From just before the process was created until it ended."""
    peak_rss_bytes: int | None
    """None if the kernel's figure may be the parent's peak instead of the child's."""


def first_images(
    bundle: str,
    workload: Workload,
    size: Size,
    options: list[str],
    repetitions: int,
    before_each: Callable[[int], None],
) -> dict[str, Any]:
    """Measure the first image of a new process, ``repetitions`` times after one warm-up run.

    The warm-up run fills caches (files, compiled modules, verified hashes) and is reported separately. Call this
    before opening a bundle in this process, because this process's peak memory would hide a child's.

    Args:
        options: options of `sd2rt run` for device, backend, precision and threads.
        before_each: called with the index of each run before it starts.

    Raises:
        EngineError: a child was killed.
        typer.Exit: a child failed; it has printed the error.
    """
    with scratch_folder("bench") as folder:
        command = [
            # Without -P, modules in the working directory would shadow installed packages.
            *(sys.executable, "-P", "-m", "sd2rt", "run", "--quiet"),
            *workload.options(size, folder),
            *options,
            *(f"--output={folder / 'first.png'}", "--", bundle, workload.prompt),
        ]
        children = []
        for turn in range(repetitions + 1):
            before_each(turn)
            children.append(run_child(command))
    first, *measured = children
    peaks = [child.peak_rss_bytes for child in measured if child.peak_rss_bytes is not None]
    return {
        "width": size[0],
        "height": size[1],
        "warmup_seconds": digits(first.seconds),
        "seconds": summary(child.seconds for child in measured),
        "peak_rss_bytes": summary(peaks) if peaks else None,
    }


def run_child(command: list[str]) -> Child:
    """Run a command to its end. Raises the errors of :func:`first_images`."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        _, status, usage = os.wait4(child.pid, 0)
    except BaseException:
        end_child(child, grace_seconds=_GRACE_SECONDS)
        raise
    seconds = time.perf_counter() - start
    # wait4 has reaped the child: set returncode so that Popen does not wait for it again.
    child.returncode = code = os.waitstatus_to_exitcode(status)
    if code < 0:
        raise EngineError(
            f"'sd2rt run' was killed by {signal.Signals(-code).name}: check whether the machine ran out of memory"
        )
    if code > 0:
        raise typer.Exit(code)
    # Before exec, a child shares its parent's memory, which counts towards the child's peak.
    peak = usage.ru_maxrss * 1024
    return Child(seconds, peak if peak > peak_rss_bytes() + _UNCERTAIN_BYTES else None)
