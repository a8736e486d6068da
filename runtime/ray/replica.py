"""A replica: a server with its workers, whose requests come from Ray's proxies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from ray import serve
from starlette.types import ASGIApp

from sd2rt.runtime.ray.replica_app import ReplicaApp
from sd2rt.runtime.ray.serve_args import check_keys
from sd2rt.runtime.server.generation import Event, GenerationRequest
from sd2rt.runtime.server.http.app import make_app
from sd2rt.runtime.server.http.bundles import worker_settings
from sd2rt.runtime.server.http.config import load_config
from sd2rt.runtime.server.http.front import Front
from sd2rt.runtime.server.logs import chosen_format, set_up_logs
from sd2rt.runtime.server.worker_client import WorkerClient, first_of
from sd2rt.runtime.server.worker_settings import WorkerSettings

Announce = Callable[[str], Awaitable[object]]


class Replica:
    """A replica of the application. Ray wraps it by ``serve.ingress``, and calls its methods in one event loop.

    Args:
        options: settings by name; others come from the environment of the replica's process.

    Raises:
        RequestError: a setting is invalid, or strangers could use the application.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._config = load_config(options)
        check_keys(self._config)
        set_up_logs(chosen_format(self._config.log_format), self._config.log_level, "front")
        self._failed = asyncio.Event()
        self._is_checked = False

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Make the application, whose lifespan starts the workers; Ray calls it after the constructor.

        Raises:
            Sd2rtError: a bundle is missing.
        """
        # Demos that are missing are built, which takes seconds.
        settings = await asyncio.to_thread(worker_settings, self._config)
        loaded = len(settings.bundles) if settings.keep is None else min(settings.keep, len(settings.bundles))
        self._announce = serve.multiplexed(max_num_models_per_replica=loaded)(_announced)
        self._all_loaded = loaded == len(settings.bundles)
        self._front = Front(self._config, AnnouncingClient(settings, self._announce))
        self._front.default_model = lambda: serve.get_multiplexed_model_id() or None
        self._front.on_failure = self._failed.set
        return ReplicaApp(make_app(self._front), self._front)

    async def check_health(self) -> None:
        """Wait until the workers are started, at first; then check that not too many of them died.

        A worker that is being started again is healthy: another replica would not be ready sooner.

        Raises:
            Sd2rtError: the workers could not be started, or died three times in a minute. Ray replaces the replica.
        """
        if not self._is_checked:
            await self._first_start()
        self._front.check_workers()
        if self._front.failure is not None:
            raise self._front.failure

    async def _first_start(self) -> None:
        await first_of(self._front.started, self._failed)
        if self._front.failure is None and self._all_loaded:
            # Otherwise Ray would take requests for a model to the one replica that had it first.
            for name in self._front.client.models:
                await self._announce(name)
        self._is_checked = True


class AnnouncingClient(WorkerClient):
    """A client that tells Ray's routers which models were used last, and so are loaded.

    Args:
        settings: of the workers.
        announce: gets the model of each request.
    """

    def __init__(self, settings: WorkerSettings, announce: Announce) -> None:
        super().__init__(settings)
        self._announce = announce

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        if request.model in self.models:
            await self._announce(request.model)
        async with aclosing(super().generate(request)) as events:
            async for event in events:
                yield event


async def _announced(model: str) -> str:
    """Return the model's name: the worker loads it itself; Ray only keeps the last names."""
    return model
