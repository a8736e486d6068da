"""The end of a worker whose parent was killed, on Linux also where nothing is left that reads its socket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the system kill this process when the thread of ``parent`` that started it ends.

    To be called by the main thread: the system drops the wish with the thread that made it. Does nothing on systems
    other than Linux, where the end of the socket pair must do.
    """
    if sys.platform != "linux":
        return
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0 and (
        os.getppid() != parent
    ):
        # It died before the wish was made.
        os._exit(1)


class _Spawner:
    """A thread that starts processes and lives as long as this one: its end would be taken for the parent's."""

    def __init__(self) -> None:
        self._wanted: SimpleQueue[tuple[Sequence[str], dict[str, Any], Future[subprocess.Popen[bytes]]]] = (
            SimpleQueue()
        )
        threading.Thread(target=self._run, name="sd2rt-spawn", daemon=True).start()

    def __call__(self, command: Sequence[str], options: dict[str, Any]) -> Future[subprocess.Popen[bytes]]:
        future: Future[subprocess.Popen[bytes]] = Future()
        self._wanted.put((command, options, future))
        return future

    def _run(self) -> None:
        while True:
            command, options, future = self._wanted.get()
            try:
                future.set_result(subprocess.Popen(command, **options))
            except BaseException as error:
                future.set_exception(error)
            # Not kept until the next one.
            del command, options, future


_spawner: _Spawner | None = None


def start_process(command: Sequence[str], **options: Any) -> Future[subprocess.Popen[bytes]]:
    """Start a process that may call :func:`die_with_parent`, with the options of :class:`subprocess.Popen`."""
    global _spawner
    if _spawner is None:
        _spawner = _Spawner()
    return _spawner(command, options)
