"""Shared state of the front process, and the way of every request for images through it."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from sd2rt.engines.errors import EngineError, Sd2rtError
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import Completed, Event, GenerationRequest, Started
from sd2rt.runtime.server.http.auth import Keyring
from sd2rt.runtime.server.http.config import ServerConfig
from sd2rt.runtime.server.http.limits import BodyBudget, RateLimit
from sd2rt.runtime.server.http.metrics import Metrics, WorkerFacts
from sd2rt.runtime.server.worker_client import WorkerClient

_LOG = logging.getLogger(__name__)
_RETRY_STARTING, _RETRY_DOWN, _RETRY_DRAINING, _RETRY_LATE = 2.0, 2.0, 10.0, 1.0


class Front:
    """Shared state of the front process; use it from one event loop.

    Args:
        config: of the server.
        client: to its workers, not started.

    Raises:
        RequestError: a key or a file of keys cannot be used.
    """

    def __init__(self, config: ServerConfig, client: WorkerClient) -> None:
        self.config = config
        self.client = client
        self.keyring = Keyring(config.keys())
        self.metrics = Metrics(lambda: WorkerFacts(client.stats, client.models))
        self.bodies = BodyBudget(config.max_bodies_bytes)
        self.rates = RateLimit(config.rate_limit)
        self.metrics_port: int | None = None
        """Port that serves metrics without a key, and nothing else; None for the main one, with a key."""
        self.document: bytes | None = None
        """The API's document in OpenAPI, which takes a moment to make; None before it was asked for."""
        self.draining = False
        self.started = asyncio.Event()
        self.failure: BaseException | None = None
        """The error that ends the server."""
        self.on_failure: Callable[[], None] = lambda: None
        self.default_model: Callable[[], str | None] = lambda: None
        """Model of a request that names none; None chooses one by the task."""
        self.on_queue_change: Callable[[], None] = lambda: None
        """Called when a request has made its first step, or has ended."""
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        """Start the workers; an error is kept in ``failure``."""
        began = time.monotonic()
        try:
            await self.client.start()
        except Exception as error:
            self.fail(error)
            return
        self.started.set()
        models = ", ".join(self.client.models)
        _LOG.info(
            "ready", extra={"fields": {"models": models, "seconds": round(time.monotonic() - began, 2)}}
        )

    def fail(self, error: BaseException) -> None:
        """Note the error that ends the server."""
        if self.failure is None:
            self.failure = error
            if not isinstance(error, Sd2rtError):
                _LOG.error("the workers did not start", exc_info=error)
            self.on_failure()

    def check_workers(self) -> None:
        """Fail if workers have died so often that no further one is started."""
        if self.client.state == "failed" and self.failure is None:
            self.fail(EngineError("the worker died three times in a minute: its log has the reason"))

    async def reload(self) -> None:
        """Read the files of keys again, and replace the workers by new ones, which open the bundles again.

        Requests in progress are finished with what they began with. If anything is wrong, all stays as it is, and
        the log has the reason.
        """
        began = time.monotonic()
        _LOG.info("reloading")
        try:
            keyring = Keyring(await asyncio.to_thread(self.config.keys))
            if not self.started.is_set():
                raise EngineError("the workers are starting: try again")
            await self.client.reload(self.client.settings)
        except Sd2rtError as error:
            _LOG.error("nothing is reloaded: %s", error)
            return
        self.keyring, self.document = keyring, None
        bundles = {model.id: model.identity[:12] for model in self.client.models.values()}
        _LOG.info(
            "reloaded", extra={"fields": {"bundles": bundles, "seconds": round(time.monotonic() - began, 2)}}
        )

    def readiness(self) -> str:
        """Return ``ready``, ``draining``, ``starting``, ``down`` or ``failed``."""
        if self.draining:
            return "draining"
        if self.failure is not None:
            return "failed"
        return self.client.state if self.started.is_set() else "starting"

    def require_ready(self) -> None:
        """Check that new work is taken.

        Raises:
            ServerError: ``draining``, ``starting`` or ``worker_down``.
        """
        match self.readiness():
            case "draining":
                raise ServerError(
                    "draining",
                    "the server is shutting down: ask another, or try again",
                    retry_after=_RETRY_DRAINING,
                )
            case "starting" if not self.started.is_set():
                raise ServerError(
                    "starting", "the server is loading its models: wait", retry_after=_RETRY_STARTING
                )
            case "ready":
                return
            case _:
                raise ServerError(
                    "worker_down", "the worker is being started again: wait", retry_after=_RETRY_DOWN
                )

    def require_started(self) -> None:
        """Check that the models are known.

        Raises:
            ServerError: ``starting``.
        """
        if not self.started.is_set():
            self.require_ready()

    def drain(self) -> None:
        """Take no more work."""
        self.draining = True

    @property
    def open_requests(self) -> int:
        """Number of requests for images that have not ended."""
        return self._open

    async def idle(self) -> None:
        """Wait until no request for images is open."""
        await self._idle.wait()

    async def events(self, request: GenerationRequest, reason: str = "disconnected") -> AsyncGenerator[Event]:
        """Yield a request's events, and count it.

        Args:
            request: to generate.
            reason: label of the metric of cancelled requests, if the generator is closed early.

        Raises:
            ServerError: the request is refused, or failed.
        """
        self.require_ready()
        self._open += 1
        self._idle.clear()
        gauge = self.metrics.waiting
        gauge.inc()
        completed = False
        try:
            async with aclosing(self.client.generate(request)) as events:
                async for event in events:
                    if isinstance(event, Started):
                        gauge.dec()
                        gauge = self.metrics.running
                        gauge.inc()
                        self.metrics.queue_seconds.observe(event.queue_ms / 1000)
                        self.on_queue_change()
                    elif isinstance(event, Completed):
                        completed = True
                        for stage, seconds in event.facts.get("stages", {}).items():
                            self.metrics.stage_seconds.labels(stage).observe(seconds)
                    yield event
        except ServerError as error:
            if error.code == "deadline_exceeded" and gauge is self.metrics.waiting:
                error = ServerError(
                    "deadline_unreachable",
                    f"{error.message} (its first step was not made)",
                    param=error.param,
                    retry_after=_RETRY_LATE,
                )
            if error.answer.status in (400, 404, 413, 429, 503):
                self.metrics.rejected.labels(error.code).inc()
            raise error
        except (GeneratorExit, asyncio.CancelledError):
            if not completed:
                self.metrics.cancelled.labels("shutdown" if self.draining else reason).inc()
            raise
        finally:
            gauge.dec()
            self.on_queue_change()
            self._open -= 1
            if self._open == 0:
                self._idle.set()


def new_id(prefix: str) -> str:
    """Make an identity that no other request has."""
    return f"{prefix}_{uuid.uuid4().hex}"
