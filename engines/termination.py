"""Ends of a command from outside: an interrupt, a termination, the end of its terminal; all clean up alike."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from types import FrameType

_ending = (128 + signal.SIGINT, "interrupted")
"""Exit code and line of the last interrupt."""


def interrupt_at(number: int, line: str) -> None:
    """Make a signal raise KeyboardInterrupt in the main thread, as an interrupt does.

    Args:
        line: printed by the command that the signal ends; its exit code is 128 and the signal.
    """

    def interrupt(received: int, frame: FrameType | None) -> None:
        global _ending
        _ending = (128 + received, line)
        raise KeyboardInterrupt

    signal.signal(number, interrupt)


def ending() -> tuple[int, str]:
    """Exit code and line of a command that a KeyboardInterrupt ends."""
    return _ending


def end_child(child: subprocess.Popen[bytes], *, grace_seconds: float | None) -> None:
    """Wait for a child to clean up after this process was interrupted; kills it after the time of grace.

    A terminal interrupts both processes. A termination reaches this one alone, and is passed on.

    Args:
        grace_seconds: seconds until the child is killed; None to wait for as long as it takes.
    """
    if ending()[0] != 128 + signal.SIGINT:
        child.terminate()
    else:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=1)
            return
        child.send_signal(signal.SIGINT)
    try:
        child.wait(timeout=grace_seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
