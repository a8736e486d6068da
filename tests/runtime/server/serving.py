"""Workers in real processes, served from one event loop a module."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sd2rt.runtime.server.generation import Completed, Event, GenerationRequest
from sd2rt.runtime.server.worker_client import WorkerClient
from sd2rt.runtime.server.worker_settings import WorkerSettings

_Value = TypeVar("_Value")
SECONDS = 120
"""Against hanging."""


class Serving:
    """A client with its workers, and the event loop that they use."""

    def __init__(self, runner: asyncio.Runner, client: WorkerClient) -> None:
        self._runner, self.client = runner, client

    def __call__(self, call: Callable[[], Awaitable[_Value]]) -> _Value:
        """Run a coroutine function in the client's event loop."""

        async def limited() -> _Value:
            async with asyncio.timeout(SECONDS):
                return await call()

        return self._runner.run(limited())

    def generate(self, request: GenerationRequest) -> Completed:
        """Generate a request, and return its last event."""
        return self(lambda: completed(self.client, request))


async def events_of(client: WorkerClient, request: GenerationRequest) -> list[Event]:
    return [event async for event in client.generate(request)]


async def completed(client: WorkerClient, request: GenerationRequest) -> Completed:
    last = (await events_of(client, request))[-1]
    assert isinstance(last, Completed)
    return last


@contextmanager
def serve(settings: WorkerSettings, **options: Any) -> Iterator[Serving]:
    """Serve settings within a ``with`` block."""
    with asyncio.Runner() as runner:

        async def make() -> WorkerClient:
            client = WorkerClient(settings, **options)
            await client.start()
            return client

        serving = Serving(runner, runner.run(make()))
        try:
            yield serving
        finally:
            runner.run(serving.client.close(0))


async def until(true: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        await asyncio.sleep(0.005)
