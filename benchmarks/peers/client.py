"""The driver's end of a peer's process."""

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
_LONGEST = 300


class PeerError(Exception):
    """The peer failed, died or took too long; the message says which, in one line."""


class PeerUnavailableError(PeerError):
    """It cannot run here; the message is the reason."""


class Client:
    """A worker's process, from its start to its end. A context manager.

    Args:
        python: the interpreter that has the peer's packages.
        log: the file that its standard error goes to.
        limit_seconds: how long a reply may take.
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
        # A pipe has no time limit; a thread that waits for it makes one possible.
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The worker's reply.

        Raises:
            PeerUnavailableError: it cannot run here.
            PeerError: it failed, died or took too long; it is gone in the latter two.
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
            raise PeerError(self._death())
        reply: dict[str, Any] = json.loads(line)
        if "unavailable" in reply:
            raise PeerUnavailableError(reply["unavailable"])
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply

    def cpu_seconds(self) -> float:
        """User and system time of it and its children so far; 0 where the system does not say."""
        return sum(_cpu_seconds(pid) for pid in tree(self._process.pid))

    def close(self, *, kill: bool = False) -> None:
        """End it: it stops at the end of its input, or is killed."""
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

    def _death(self) -> str:
        self.close()
        code = self._process.returncode
        how = f"ended with {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "it printed nothing")
        return f"{how}: {last[:_LONGEST]}"


def _cpu_seconds(pid: int) -> float:
    try:
        # The command's name, in brackets, may have spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
