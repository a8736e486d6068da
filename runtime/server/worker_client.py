"""The front's view of the workers: generate images, whatever happens to them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from time import monotonic
from typing import Literal

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import (
    Completed,
    Event,
    GenerationRequest,
    ModelInfo,
)
from sd2rt.runtime.server.worker.link import Link
from sd2rt.runtime.server.worker.poison import Suspects
from sd2rt.runtime.server.worker.supervisor import COMMAND
from sd2rt.runtime.server.worker_settings import WorkerSettings
from sd2rt.runtime.server.worker_stats import WorkerStats

WorkerState = Literal["starting", "ready", "down", "failed"]

_RESTART_SECONDS = 5.0
"""Retry-After while a worker restarts."""


async def first_of(*events: asyncio.Event) -> None:
    """Wait until one of several events is set."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


class WorkerClient:
    """Workers of one server, one for each device; use it from one event loop.

    Args:
        settings: bundles, devices and limits.
        command: starts a worker.
    """

    def __init__(self, settings: WorkerSettings, *, command: Sequence[str] = COMMAND) -> None:
        self.settings = settings
        self._command = command
        self._suspects = Suspects()
        self._links = self._make_links(settings)
        self._retiring: list[Link] = []
        """Links of before a reload, which finish what they have."""
        self._ending: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()
        self._reloaded = asyncio.Event()
        self._ended_restarts: Counter[str] = Counter()
        self._ended_calls: Counter[int] = Counter()
        self._draining = False
        self._images = 0
        self._cancelled = 0
        self._nonfinite: Counter[str] = Counter()
        self._out_of_memory = 0

    async def start(self) -> None:
        """Start the workers and wait until all are ready.

        Raises:
            Sd2rtError: a bundle cannot be opened, does not fit in memory, or a device or package is missing.
        """
        results = await asyncio.gather(
            *(link.supervisor.start() for link in self._links), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                await self.close(0)
                raise result

    async def reload(self, settings: WorkerSettings) -> None:
        """Start further workers, send them all new requests, and end the others once theirs are finished.

        No request is lost or refused for it. Meanwhile both need memory, on the same devices. Further reloads wait
        until the workers before the last one have ended.

        Raises:
            Sd2rtError: the new workers cannot start; nothing has changed.
        """
        async with self._reloading:
            if self._ending is not None:
                await self._ending
            links = self._make_links(settings)
            results = await asyncio.gather(
                *(link.supervisor.start() for link in links), return_exceptions=True
            )
            errors = [result for result in results if isinstance(result, BaseException)]
            if errors or self._draining:
                await asyncio.gather(*(link.supervisor.close() for link in links))
                if errors:
                    raise errors[0]
                return
            self._retiring, self._links, self.settings = self._links, links, settings
            self._ending = asyncio.create_task(self._retire())
            self._reloaded.set()

    async def _retire(self) -> None:
        """End the workers of before a reload after their last request."""
        while any(link.jobs for link in self._retiring):
            await asyncio.sleep(0.02)
        await asyncio.gather(*(link.supervisor.close() for link in self._retiring))
        for link in self._retiring:
            self._ended_restarts.update(link.supervisor.restarts)
            self._ended_calls.update(link.calls)
        self._retiring = []

    def _make_links(self, settings: WorkerSettings) -> list[Link]:
        return [Link(settings, device, self._command, self._suspects) for device in settings.devices]

    @property
    def _all_links(self) -> list[Link]:
        return [*self._links, *self._retiring]

    async def close(self, timeout: float | None = None) -> None:
        """Refuse new requests, wait for running and queued ones, and end the workers.

        Args:
            timeout: seconds after which unfinished requests are given up; None to wait for as long as they take, 0
                not to wait.
        """
        self.drain()
        end = None if timeout is None else monotonic() + timeout
        while any(link.jobs for link in self._all_links) and (end is None or monotonic() < end):
            await asyncio.sleep(0.02)
        if self._ending is not None:
            self._ending.cancel()
        for link in self._all_links:
            link.fail_all(
                ServerError("draining", "the server ended before the request was finished: send it again")
            )
        await asyncio.gather(*(link.supervisor.close() for link in self._all_links))

    def drain(self) -> None:
        """Refuse new requests from now on; running and queued ones go on."""
        self._draining = True

    async def wait_failed(self) -> None:
        """Wait until workers have died so often that no further one is started."""
        while self.state != "failed":
            self._reloaded.clear()
            await first_of(self._reloaded, *(link.supervisor.failed for link in self._links))

    @property
    def state(self) -> WorkerState:
        """``ready`` if a worker takes requests; ``failed`` if one died three times in a minute."""
        states = {link.supervisor.state for link in self._links}
        if "failed" in states:
            return "failed"
        if "ready" in states:
            return "ready"
        return "starting" if "starting" in states else "down"

    @property
    def models(self) -> dict[str, ModelInfo]:
        """Served bundles by name; empty before the first worker is ready."""
        models: dict[str, ModelInfo] = {}
        for link in self._links:
            for name, model in link.models.items():
                known = models.get(name)
                models[name] = model if known is None else replace(known, loaded=known.loaded or model.loaded)
        return models

    @property
    def stats(self) -> WorkerStats:
        """Numbers for metrics; cheap."""
        stats = WorkerStats(
            images=self._images,
            cancelled=self._cancelled,
            nonfinite=dict(self._nonfinite),
            out_of_memory=self._out_of_memory,
        )
        restarts, batches = self._ended_restarts.copy(), self._ended_calls.copy()
        for link in self._links:
            stats.up[link.device] = link.supervisor.state == "ready"
        for link in self._all_links:
            restarts.update(link.supervisor.restarts)
            batches.update(link.calls)
            for job in link.jobs.values():
                if job.started:
                    stats.running += job.request.count
                else:
                    stats.waiting += job.request.count
            for batch, seconds in link.step_seconds.items():
                stats.step_seconds[batch] = max(seconds, stats.step_seconds.get(batch, 0.0))
            if link.memory_bytes is not None:
                before = stats.device_memory_bytes.get(link.device, 0)
                stats.device_memory_bytes[link.device] = before + link.memory_bytes
        stats.restarts, stats.batches = dict(restarts), dict(sorted(batches.items()))
        stats.image_steps = sum(batch * calls for batch, calls in batches.items())
        return stats

    def queue_position(self, request_id: str) -> int | None:
        """Return the place of a request among those that wait for their first step on its device, by arrival.

        The first has place 1. None if the request has made a step, or is not there.
        """
        for link in self._all_links:
            waiting = [job.request.request_id for job in link.jobs.values() if not job.started]
            if request_id in waiting:
                return waiting.index(request_id) + 1
        return None

    @property
    def pids(self) -> dict[str, int]:
        """Processes of the workers that are alive, by device."""
        return {link.device: link.supervisor.pid for link in self._links if link.supervisor.pid is not None}

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """Generate the images of a request.

        Closing the generator, or cancelling the task that waits for it, gives up the request's place within a step.
        Steps are left out where the consumer is slower than they are.

        Raises:
            ServerError: the request is refused or failed.
        """
        link = self._admit(request)
        job = link.add(request)
        completed = False
        try:
            await link.submit(job)
            while not completed:
                event = await job.next_event()
                completed = isinstance(event, Completed)
                if isinstance(event, Completed):
                    self._images += len(event.images)
                yield event
        except ServerError as error:
            if error.code == "not_finite":
                self._nonfinite[job.failed_stage or "step"] += request.count
            self._out_of_memory += error.code == "out_of_memory"
            completed = True
            raise
        finally:
            if not completed:
                self._cancelled += 1
                link.cancel(job)

    def end_early(self, request_id: str) -> None:
        """Ask for the picture of a request as far as it is, instead of its remaining steps.

        Its events end with the picture. Only a single picture with previews ends early; others are finished.
        """
        for link in self._all_links:
            for job in link.jobs.values():
                if job.request.request_id == request_id:
                    link.end_early(job)

    def _admit(self, request: GenerationRequest) -> Link:
        """Choose the worker with the least estimated work.

        Raises:
            ServerError: none takes the request.
        """
        if self._draining:
            raise ServerError("draining", "the server is shutting down: use another one")
        match self.state:
            case "starting":
                raise ServerError(
                    "starting", "the server is starting: try again", retry_after=_RESTART_SECONDS
                )
            case "down" | "failed":
                raise ServerError(
                    "worker_down", "the worker is restarting: try again", retry_after=_RESTART_SECONDS
                )
        if request.model not in (models := self.models):
            raise ServerError(
                "model_not_found",
                f"no model is named {request.model[:60]!r}: use {', '.join(models)}",
                param="model",
            )
        self._suspects.refuse(request)
        most = self.settings.max_images
        if not 1 <= request.count <= most:
            raise ServerError("invalid_value", f"n is {request.count}: use 1 to {most}", param="n")
        ready = [link for link in self._links if link.supervisor.state == "ready"]
        free = [link for link in ready if link.images + request.count <= most]
        if not free:
            wait = min(link.seconds_until_free(request.count) for link in ready)
            images = sum(link.images for link in ready)
            raise ServerError(
                "queue_full",
                f"the queue is full: {images} of at most {most * len(ready)} images are unfinished: try again later",
                retry_after=wait,
            )
        return min(free, key=lambda link: (link.seconds_left(), not link.has_loaded(request.model)))
