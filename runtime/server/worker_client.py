"""The front's view of the workers: generate images, whatever happens to them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Literal

from sd2rt.runtime.server.generation import Event, GenerationRequest, ModelInfo
from sd2rt.runtime.server.worker_settings import WorkerSettings
from sd2rt.runtime.server.worker_stats import WorkerStats

WorkerState = Literal["starting", "ready", "down", "failed"]


class WorkerClient:
    """Workers of one server; use it from one event loop.

    Args:
        settings: bundles, devices and limits.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings

    async def start(self) -> None:
        """Start the workers and wait until all are ready.

        Raises:
            Sd2rtError: a bundle cannot be opened, does not fit in memory, or a device or package is missing.
        """
        raise NotImplementedError

    async def close(self, timeout: float | None = None) -> None:
        """Refuse new requests, wait for running and queued ones, and end the workers.

        Args:
            timeout: seconds after which unfinished requests are given up; None to wait for as long as they take, 0
                not to wait.
        """
        raise NotImplementedError

    @property
    def state(self) -> WorkerState:
        """``ready`` if a worker takes requests; ``failed`` if workers died three times in a minute."""
        raise NotImplementedError

    @property
    def models(self) -> dict[str, ModelInfo]:
        """Served bundles by name; empty before the first worker is ready."""
        raise NotImplementedError

    @property
    def stats(self) -> WorkerStats:
        """Numbers for metrics; cheap."""
        raise NotImplementedError

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """Generate the images of a request.

        Closing the generator, or cancelling the task that waits for it, gives up the request's place within a step.

        Raises:
            ServerError: the request is refused or failed.
        """
        raise NotImplementedError
