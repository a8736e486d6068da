"""Client for a peer's worker process."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from benchmarks.recording.process import tree

_ROOT = Path(__file__).resolve().parent.parent.parent
_END_SECONDS = 20.0
_LONGEST_LINE = 300


class PeerError(Exception):
    """The peer failed, exited or timed out; the message says which, in one line."""


class PeerUnavailableError(PeerError):
    """The peer cannot run here; the message is the reason."""


class Client:
    """Start a worker process and exchange requests with it. A context manager.

    Args:
        python: interpreter with the peer's packages.
        log: file for the worker's standard error.
        limit_seconds: time limit of a reply.
    """

    def __init__(self, python: str, env: Mapping[str, str], log: Path, limit_seconds: float) -> None:
        self._limit, self._log = limit_seconds, log
        try:
            with log.open("w") as stderr:
                self._process = subprocess.Popen(
                    [python, "-m", "benchmarks.peers.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                    cwd=_ROOT,
                    env=env,
                )
        except OSError as error:
            raise PeerUnavailableError(f"{python} cannot be run: {error.strerror}") from error
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # Reading a pipe has no timeout; a thread and a queue provide one.
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and return the worker's reply.

        Raises:
            PeerUnavailableError: the peer cannot run here.
            PeerError: the request failed, or the worker exited or timed out; after the latter two it is closed.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=self._limit)
        except queue.Empty:
            self.close(kill=True)
            raise PeerError(f"{request['do']} took longer than {self._limit:g} s") from None
        except BrokenPipeError:
            line = None
        if line is None:
            raise PeerError(self._exit_reason())
        reply: dict[str, Any] = json.loads(line)
        if "unavailable" in reply:
            raise PeerUnavailableError(reply["unavailable"])
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply

    def cpu_seconds(self) -> float:
        """User and system time of the worker and its children so far; 0 if the system does not report it."""
        return sum(_cpu_seconds(pid) for pid in tree(self._process.pid))

    def close(self, *, kill: bool = False) -> None:
        """Close the worker's input, at which it exits; kill it if that takes too long or ``kill`` is set."""
        if kill:
            self._process.kill()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close(kill=error[0] is not None)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _exit_reason(self) -> str:
        self.close()
        code = self._process.returncode
        reason = f"exited with {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines()]
        last_line = next((line for line in reversed(lines) if line), "it printed nothing")
        return f"{reason}: {last_line[:_LONGEST_LINE]}"


def _cpu_seconds(pid: int) -> float:
    try:
        # The second field is the command's name in brackets, which may contain spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
