"""A thread with the event loop of a worker client, for callers that have no loop of their own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

from sd2rt.engines.errors import Sd2rtError
from sd2rt.runtime.server.worker_client import WorkerClient
from sd2rt.runtime.server.worker_settings import WorkerSettings

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 60.0


class WorkerThread:
    """Runs a worker client, and starts a new one with a back-off after its workers have died too often.

    Args:
        settings: of the workers.
        command: starts a worker.
    """

    def __init__(self, settings: WorkerSettings, command: Sequence[str]) -> None:
        self._settings, self._command = settings, tuple(command)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sd2rt-client", daemon=True)
        self._keeping: asyncio.Task[None] | None = None
        self.client: WorkerClient
        """Current client; use it in this thread's loop."""

    def start(self) -> None:
        """Start the workers, and wait until they are ready.

        Raises:
            Sd2rtError: a bundle cannot be opened, does not fit in memory, or a device or package is missing.
        """
        self._thread.start()
        try:
            self.submit(self._begin()).result()
        except BaseException:
            self._stop_loop()
            raise

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine in the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self, timeout: float | None) -> None:
        """Refuse new requests, let open ones end for so many seconds, and end the workers."""
        self.submit(self._end(timeout)).result()
        self._stop_loop()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _begin(self) -> None:
        # Made here: it belongs to this loop.
        self.client = WorkerClient(self._settings, command=self._command)
        await self.client.start()
        self._keeping = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        """Replace a client that has given up; requests are refused with ``worker_down`` meanwhile."""
        pause = _FIRST_PAUSE
        while True:
            await self.client.wait_failed()
            _LOG.error("the worker died too often: the next is started in %.0f s", pause)
            await asyncio.sleep(pause)
            client = WorkerClient(self._settings, command=self._command)
            try:
                await client.start()
            except Sd2rtError as error:
                _LOG.error("the worker cannot start: %s", error)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            failed, self.client = self.client, client
            await failed.close(0)
            pause = _FIRST_PAUSE

    async def _end(self, timeout: float | None) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait((self._keeping,))
        await self.client.close(timeout)
