"""A real `sd2rt serve` process, for benchmarks and tests."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from benchmarks.recording import process

_POLL_SECONDS = 0.01


class Server:
    """A server on a free port of this machine; a context manager that ends it.

    Args:
        arguments: of `sd2rt serve`; ``--port 0`` and JSON logs are added.
        env: environment; None for this process's.
        wait: wait until it is ready.
        session: start it in a session of its own, without a terminal.
        timeout: seconds until it is given up.

    Raises:
        RuntimeError: it ended, or was not ready in time; with its last lines.
    """

    def __init__(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        wait: bool = True,
        session: bool = False,
        timeout: float = 120,
    ) -> None:
        self.began = time.monotonic()
        self._log = tempfile.NamedTemporaryFile("w+", prefix="sd2rt-serve-", suffix=".log")  # noqa: SIM115
        self.process = subprocess.Popen(
            process.sd2rt("serve", *arguments, "--port", "0", "--log-format", "json"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log.file,
            env=env,
            # A service has no terminal; with one, SIGHUP is its hangup.
            start_new_session=session,
        )
        try:
            self.url, self.metrics_url = self._urls(timeout)
            self.host, port = self.url.removeprefix("http://").rsplit(":", 1)
            self.port = int(port)
            self.ready_seconds = self.wait_ready(timeout) if wait else None
        except BaseException:
            self.kill()
            self._log.close()
            raise

    @property
    def log(self) -> str:
        """All lines of the log."""
        return Path(self._log.name).read_text(errors="replace")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Log lines that are JSON."""
        found = []
        for line in self.log.splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def get(self, path: str, timeout: float = 10) -> tuple[int, bytes]:
        """Send a GET on a connection of its own; return status and body.

        Raises:
            OSError: the server does not answer.
        """
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def wait_status(self, status: int, timeout: float = 60, path: str = "/readyz") -> float:
        """Wait until a path answers with a status; return the seconds that took.

        Raises:
            RuntimeError: the server ended, or took too long.
        """
        began = time.monotonic()
        while time.monotonic() - began < timeout:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log[-3000:]}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.get(path)[0] == status:
                    return time.monotonic() - began
            time.sleep(_POLL_SECONDS)
        raise RuntimeError(f"{path} was not {status} within {timeout} s:\n{self.log[-3000:]}")

    def wait_until(self, holds: Callable[[], bool], timeout: float = 60) -> None:
        """Wait until a condition holds.

        Raises:
            RuntimeError: it took too long.
        """
        until = time.monotonic() + timeout
        while not holds():
            if time.monotonic() > until:
                raise RuntimeError(f"nothing within {timeout} s:\n{self.log[-3000:]}")
            time.sleep(_POLL_SECONDS)

    def wait_ready(self, timeout: float = 60) -> float:
        """Wait until it is ready; return the seconds since its start."""
        self.wait_status(200, timeout)
        return time.monotonic() - self.began

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        return [pid for pid in process.tree(self.process.pid) if pid != self.process.pid]

    def stop(self, timeout: float = 60) -> int:
        """Send SIGTERM and return the exit code.

        Raises:
            RuntimeError: it did not end in time; it is killed then.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = 60) -> int:
        """Wait for its end and return the exit code.

        Raises:
            RuntimeError: it did not end in time; it is killed then.
        """
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the server did not end within {timeout} s:\n{self.log[-3000:]}") from None

    def kill(self) -> None:
        """Kill it, and its workers, which end by themselves otherwise."""
        for pid in [*self.workers(), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(RuntimeError):
            self.stop()
        self._log.close()

    def _urls(self, timeout: float) -> tuple[str, str | None]:
        while time.monotonic() - self.began < timeout and self.process.poll() is None:
            for line in self.lines:
                if line.get("message") == "listening":
                    return line["url"], line.get("metrics")
            time.sleep(_POLL_SECONDS)
        raise RuntimeError(f"the server does not listen ({self.process.poll()}):\n{self.log[-3000:]}")


class Client:
    """A client with one connection that is kept alive, of the standard library alone.

    Args:
        server: to connect to.
    """

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection(server.host, server.port, timeout=600)

    def generate(self, fields: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """POST to ``/v1/images/generations``; return status and body."""
        self._connection.request(
            "POST", "/v1/images/generations", json.dumps(fields), {"content-type": "application/json"}
        )
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def in_threads(work: Callable[[int], object], count: int) -> Iterator[None]:
    """Call ``work(index)`` in ``count`` threads during the block, and join them at its end."""
    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()
