"""Keeps one worker process alive: starts it, notices its death, and starts the next."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Literal

from sd2rt.engines import errors
from sd2rt.engines.errors import EngineError, Sd2rtError
from sd2rt.runtime.server.worker.parent_death import start_process
from sd2rt.runtime.server.worker.wire import Connection, Frame, WireError
from sd2rt.runtime.server.worker_settings import WorkerSettings

_LOG = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "sd2rt.runtime.server.worker")

_DEATHS, _WITHIN_SECONDS = 3, 60.0
"""Deaths within that time after which no further worker is started."""
_LONGEST_PAUSE = 30.0
_END_SECONDS = 10.0

State = Literal["starting", "ready", "down", "failed", "closed"]


class Supervisor:
    """Supervises the worker of one device; use it from one event loop.

    Args:
        settings: passed on to each worker.
        device: where the worker runs.
        command: starts a worker; ``--fd`` and ``--parent`` are appended.
        on_frame: gets each message of a ready worker.
        on_ready: gets a worker's message that it is ready.
        on_lost: called when a ready worker has died.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        device: str,
        *,
        on_frame: Callable[[Frame], None],
        on_ready: Callable[[Frame], None],
        on_lost: Callable[[], None],
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.settings, self.device, self._command = settings, device, command
        self._on_frame, self._on_ready, self._on_lost = on_frame, on_ready, on_lost
        self.state: State = "starting"
        self.restarts: Counter[str] = Counter()
        """Workers that were started after another's death, by its reason."""
        self.pid: int | None = None
        """Process of the worker that is alive."""
        self.failed = asyncio.Event()
        """Set when no further worker is started because too many died."""
        self._deaths: deque[float] = deque(maxlen=_DEATHS)
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    async def start(self) -> None:
        """Start the worker, and wait until it is ready.

        Raises:
            Sd2rtError: it cannot serve the settings, or died.
        """
        ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(ready))
        await ready

    async def close(self) -> None:
        """Let the worker end; kills it if it does not within ten seconds."""
        self._closing = True
        if self._connection is not None:
            self._connection.post({"close": True})
        if self._task is None:
            return
        if self._connection is not None:
            await asyncio.wait((self._task,), timeout=_END_SECONDS)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self.state = "closed"

    async def send(self, frame: Frame) -> None:
        """Send a message to a ready worker.

        Raises:
            OSError: it has died.
            WireError: the message is beyond the limits.
        """
        if self._connection is None or self.state != "ready":
            raise ConnectionResetError("the worker is not ready")
        await self._connection.send(*frame)

    def post(self, frame: Frame) -> None:
        """Send a short message without waiting, if the worker is ready."""
        if self._connection is not None and self.state == "ready":
            self._connection.post(frame.header)

    async def _run(self, first: asyncio.Future[None]) -> None:
        """Run one worker after another."""
        while True:
            try:
                reason = await self._one_life(first)
            except Sd2rtError as error:
                # It says why it cannot start: another would not either, unless one could before.
                if not first.done():
                    self.state = "down"
                    first.set_exception(error)
                    return
                _LOG.error("the worker of %s cannot start: %s", self.device, error)
                reason = "died"
            if self._closing:
                if not first.done():
                    first.set_exception(EngineError("the server was closed while it started"))
                return
            if not first.done():
                self.state = "down"
                first.set_exception(
                    EngineError(f"the worker of {self.device} died while it started: see its log")
                )
                return
            self._deaths.append(monotonic())
            if len(self._deaths) == _DEATHS and self._deaths[-1] - self._deaths[0] < _WITHIN_SECONDS:
                _LOG.error("the worker of %s died %d times in a minute: giving up", self.device, _DEATHS)
                self.state = "failed"
                self.failed.set()
                return
            self.restarts[reason] += 1
            await asyncio.sleep(self._pause())

    def _pause(self) -> float:
        """Seconds before the next start: none after a single death, then doubled."""
        recent = sum(monotonic() - death < _WITHIN_SECONDS for death in self._deaths)
        return 0.0 if recent < 2 else min(0.5 * 2 ** (recent - 1), _LONGEST_PAUSE)

    async def _one_life(self, first: asyncio.Future[None]) -> str:
        """Run a worker until its end; returns the reason.

        Raises:
            Sd2rtError: the worker says that it cannot serve.
        """
        process, connection = await self._spawn()
        self.pid, self._connection = process.pid, connection
        try:
            try:
                async with asyncio.timeout(self.settings.start_seconds):
                    await connection.send({"configure": self.settings.to_json(), "device": self.device})
                    frame = await connection.receive()
            except TimeoutError:
                return "start_timeout"
            if frame is None:
                return "died"
            if "fatal" in frame.header:
                raise _error_of(frame)
            if "ready" not in frame.header:
                return "garbage"
            self._on_ready(frame)
            self.state = "ready"
            if not first.done():
                first.set_result(None)
            return await self._listen(connection)
        except WireError as error:
            _LOG.error("the worker of %s, process %d: %s", self.device, process.pid, error)
            return "garbage"
        except OSError:
            return "died"
        finally:
            was_ready, self.state = self.state == "ready", "down"
            self._connection = self.pid = None
            connection.abort()
            if was_ready:
                self._on_lost()
            code = await asyncio.shield(asyncio.to_thread(_ended, process, self._closing))
            if not self._closing:
                _LOG.error("the worker of %s, process %d, ended with %d", self.device, process.pid, code)

    async def _spawn(self) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, theirs = socket.socketpair()
        with theirs:
            end = theirs.fileno()
            command = (*self._command, "--fd", str(end), "--parent", str(os.getpid()))
            # Its log goes to standard error; nothing it prints may mix with this process's output.
            starting = start_process(
                command, pass_fds=(end,), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            try:
                process = await asyncio.wrap_future(starting)
            except BaseException:
                ours.close()
                raise
        return process, await Connection.open(ours)

    async def _listen(self, connection: Connection) -> str:
        while True:
            try:
                async with asyncio.timeout(self.settings.silence_seconds):
                    frame = await connection.receive()
            except TimeoutError:
                # A process that is alive sends numbers every half second.
                return "silent"
            if frame is None:
                return "died"
            self._on_frame(frame)


def _ended(process: subprocess.Popen[bytes], orderly: bool) -> int:
    """Wait for a process to end, and kill it if it does not."""
    if orderly:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_END_SECONDS / 2)
    process.kill()
    return process.wait()


def _error_of(frame: Frame) -> Sd2rtError:
    kind = getattr(errors, str(frame.header["fatal"]), None)
    message = str(frame.header.get("message"))
    known = isinstance(kind, type) and issubclass(kind, Sd2rtError) and kind is not errors.NotFiniteError
    return kind(message) if known and kind is not None else EngineError(message)
