"""Ending the process of a stage."""

from __future__ import annotations

import os
import signal
import subprocess

from benchmarks.recording import process


def stop(running: subprocess.Popen[str]) -> None:
    """Kill a stage with all its descendants: a compiler has a session of its own and outlives its parent."""
    if running.poll() is not None:
        return
    for pid in list(process.tree(running.pid)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    running.wait()
