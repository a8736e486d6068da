"""The HTTP server's life: listen, serve, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Generator

import uvicorn

from sd2rt.engines.errors import RequestError
from sd2rt.engines.printable import printable
from sd2rt.runtime.server.http.api.job_store import JobStore
from sd2rt.runtime.server.http.app import make_app
from sd2rt.runtime.server.http.config import ServerConfig
from sd2rt.runtime.server.http.connection import MAX_HEADER_BYTES, connection_class
from sd2rt.runtime.server.http.front import Front

_LOG = logging.getLogger(__name__)
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
_RELOAD = getattr(signal, "SIGHUP", None)
_SPARE_FILES = 64
_FETCH_SECONDS = 5.0
"""Time for the images of jobs that ended during a drain to be fetched."""
_CLOSE_SECONDS = 2
"""Time for answers to be sent when all requests have ended."""


class HttpServer(uvicorn.Server):
    """A server that goes on listening while it drains.

    The first SIGTERM or SIGINT begins the drain: new work is refused with 503, running and queued requests go on
    until they have ended or ``shutdown_timeout`` is over. A second signal ends it at once. SIGHUP reloads; where
    there is a terminal, it is its hangup and drains too.

    Args:
        front: shared state.
        sockets: that listen.
    """

    def __init__(self, front: Front, sockets: list[socket.socket]) -> None:
        config = front.config
        app = make_app(front)
        super().__init__(
            uvicorn.Config(
                app,
                http=connection_class(
                    config.header_timeout, config.write_timeout, _most_connections(config.max_connections)
                ),  # type: ignore[arg-type]
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=int(config.keep_alive),
                timeout_graceful_shutdown=_CLOSE_SECONDS,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            )
        )
        self._front = front
        self._jobs: JobStore = app.state.jobs
        self._listening = sockets
        self.signal_number: int | None = None
        """Of the signal that began the end."""
        self.drained = False
        self._draining: asyncio.Task[None] | None = None
        # Asked now: once the terminal has hung up, it is gone.
        self._terminal = _has_terminal()
        self._reloads: set[asyncio.Task[None]] = set()
        front.on_failure = self._end

    def serve_until_signal(self) -> int:
        """Serve until a signal, and return the exit code: 0 drained, or 128 and the signal if requests were given up.

        Raises:
            Sd2rtError: the workers did not start, or died too often.
        """
        self.run(self._listening)
        if self._front.failure is not None:
            raise self._front.failure
        return 0 if self.drained or self.signal_number is None else 128 + self.signal_number

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals in the event loop while the block lasts."""
        loop = asyncio.get_running_loop()
        handled = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.getsignal(number) for number in handled}
        for number in handled:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)
                signal.signal(number, before[number])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the lifespan after a second signal too; uvicorn would leave it to be cancelled, with a traceback."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    def _on_signal(self, number: int) -> None:
        if number == _RELOAD and not self._terminal:
            if not self._front.draining:
                task = asyncio.get_running_loop().create_task(self._front.reload())
                self._reloads.add(task)
                task.add_done_callback(self._reloads.discard)
            return
        if self._front.draining:
            _LOG.warning("a second signal: requests are given up")
            if self._draining is not None:
                self._draining.cancel()
            self._end(force=True)
            return
        self.signal_number = number
        self._front.drain()
        _LOG.info(
            "draining",
            extra={"fields": {"signal": signal.Signals(number).name, "open": self._front.open_requests}},
        )
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        began = time.time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._front.config.shutdown_timeout):
                await self._front.idle()
                self.drained = True
                while self._jobs.awaited(began) and time.time() < began + _FETCH_SECONDS:
                    await asyncio.sleep(0.05)
        if not self.drained:
            _LOG.warning(
                "the shutdown timeout is over: requests are given up",
                extra={"fields": {"open": self._front.open_requests}},
            )
        self._end()

    def _end(self, force: bool = False) -> None:
        self.should_exit = True
        self.force_exit = self.force_exit or force

    async def on_tick(self, counter: int) -> bool:
        """Look for workers that have failed for good, ten times a second."""
        self._front.check_workers()
        return await super().on_tick(counter)


def _has_terminal() -> bool:
    """Return whether this process has a terminal that can hang up; services have none."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        RequestError: the port is in use, or the address is not this machine's.
    """
    where = f"{printable(host)}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise RequestError(f"--host {printable(host)} is no address: use 127.0.0.1, 0.0.0.0 or ::") from None
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise RequestError(f"{where} is in use: choose another --port, or end its server") from None
        if error.errno == errno.EACCES:
            raise RequestError(f"{where} is not allowed to this user: choose a --port above 1023") from None
        raise RequestError(f"cannot listen on {where} ({error.strerror}): choose another --host") from None
    listening.setblocking(False)
    return listening


def serve(front: Front) -> int:
    """Listen and serve until a signal; return the exit code.

    Raises:
        Sd2rtError: a port is in use, a bundle or device cannot be used, or the workers died too often.
    """
    config = front.config
    sockets = [listen(config.host, config.port)]
    try:
        if config.metrics_port is not None:
            sockets.append(listen(config.host, config.metrics_port))
            front.metrics_port = sockets[1].getsockname()[1]
        server = HttpServer(front, sockets)
        _announce(config, sockets)
        return server.serve_until_signal()
    finally:
        for listening in sockets:
            listening.close()


def _announce(config: ServerConfig, sockets: list[socket.socket]) -> None:
    host = f"[{config.host}]" if ":" in config.host else config.host
    urls = [f"http://{host}:{listening.getsockname()[1]}" for listening in sockets]
    fields = dict(zip(("url", "metrics"), urls, strict=False))
    _LOG.info("listening", extra={"fields": fields})


def _most_connections(wanted: int) -> int:
    """Return how many connections fit in the limit of open files, which is raised if that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - _SPARE_FILES))
