"""Jobs: requests that go on without their client, kept for a bounded time and size."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import Completed, DepthMap, GenerationRequest, Started, Stepped
from sd2rt.runtime.server.http.error_answers import INTERNAL
from sd2rt.runtime.server.http.front import Front

_LOG = logging.getLogger(__name__)
_MOST_JOBS = 10_000
JobStatus = Literal["queued", "running", "completed", "failed"]


@dataclass(slots=True, eq=False)
class Job:
    """A request and how far it is."""

    id: str
    caller: str | None
    request: GenerationRequest
    ignored: list[str]
    created: float = field(default_factory=time.time)
    status: JobStatus = "queued"
    step: int = 0
    steps: int | None = None
    preview: bytes | None = None
    depth_map: bytes | None = None
    completed: Completed | None = None
    error: ServerError | None = None
    ended: float | None = None
    deleted: bool = False
    fetched: bool = False
    """An image was sent, or the job's error shown."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at the next change."""
    task: asyncio.Task[None] | None = None

    @property
    def size(self) -> int:
        """Bytes of the job's images."""
        images = [] if self.completed is None else self.completed.images
        return sum(len(image.data) for image in images) + len(self.depth_map or b"")

    @property
    def active(self) -> bool:
        return self.ended is None

    def change(self) -> None:
        """Wake those who watch."""
        self.changed.set()
        self.changed = asyncio.Event()


class JobStore:
    """The jobs of a server. Ended ones leave after a time, or when newer ones need their place.

    Args:
        front: that runs them.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._jobs: dict[str, Job] = {}
        self._by_key: dict[tuple[str | None, str], tuple[str, str]] = {}
        """Digest of the body and identity of the job, by caller and ``Idempotency-Key``."""
        self._queued: set[Job] = set()
        front.on_queue_change = self._move_up

    def repeated(self, caller: str | None, key: str, body: bytes) -> Job | None:
        """Return the job that was made with an ``Idempotency-Key``, or None.

        Raises:
            ServerError: ``idempotency_conflict``: it was made of another body.
        """
        self._sweep()
        found = self._by_key.get((caller, key))
        if found is None or found[1] not in self._jobs:
            return None
        digest, identity = found
        if digest != _digest(body):
            raise ServerError(
                "idempotency_conflict",
                "this Idempotency-Key was used with another body: use a new key",
                param="idempotency-key",
            )
        return self._jobs[identity]

    async def create(
        self,
        request: GenerationRequest,
        ignored: list[str],
        *,
        caller: str | None,
        key: str | None,
        body: bytes,
        seconds: float,
    ) -> Job:
        """Start a job, and wait for a limited time for it to be refused.

        Raises:
            ServerError: it was refused, or there are too many jobs.
        """
        self._sweep()
        if len(self._jobs) >= _MOST_JOBS and not self._drop_oldest():
            raise ServerError("queue_full", f"{_MOST_JOBS} jobs are unfinished: wait", retry_after=10)
        job = Job(request.request_id, caller, request, ignored)
        self._jobs[job.id] = job
        self._queued.add(job)
        if key is not None:
            self._by_key[job.caller, key] = (_digest(body), job.id)
        job.task = asyncio.create_task(self._run(job))
        changed = job.changed
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await changed.wait()
        if job.error is not None and job.status == "failed" and job.steps is None:
            self._forget(job)
            raise job.error
        return job

    def get(self, identity: str, caller: str | None) -> Job:
        """Return a job of a caller's.

        Raises:
            ServerError: ``not_found``; also for another caller's job.
        """
        self._sweep()
        job = self._jobs.get(identity)
        if job is None or job.caller != caller:
            raise ServerError("not_found", "there is no such job: it may have expired", param="id")
        return job

    async def delete(self, job: Job) -> None:
        """Cancel a job if it has not ended, and forget it."""
        job.deleted = True
        self._forget(job)
        if job.task is not None:
            job.task.cancel()
            await asyncio.wait((job.task,))
        job.change()

    def awaited(self, since: float) -> bool:
        """Return whether a job ended after a time (Unix), and nobody has fetched it."""
        return any(
            job.ended is not None and job.ended >= since and not job.fetched for job in self._jobs.values()
        )

    async def watch(self, job: Job) -> AsyncGenerator[Job]:
        """Yield the job now, and at changes until it has ended; changes that come too fast are merged."""
        while True:
            changed = job.changed
            yield job
            if not job.active or job.deleted:
                return
            await changed.wait()

    def _move_up(self) -> None:
        """Wake those who watch queued jobs: their places have changed."""
        for job in self._queued:
            job.change()

    async def _run(self, job: Job) -> None:
        outcome = "ok"
        try:
            async for event in self._front.events(job.request, reason="deleted"):
                match event:
                    case DepthMap():
                        job.depth_map = event.data
                    case Started():
                        job.status = "running"
                        self._queued.discard(job)
                    case Stepped():
                        job.step, job.steps, job.preview = event.step, event.steps, event.preview
                    case Completed():
                        job.completed, job.status = event, "completed"
                        job.preview = None
                        continue
                job.change()
        except ServerError as error:
            job.error, job.status, outcome = error, "failed", error.code
        except asyncio.CancelledError:
            job.error = ServerError("draining", "the server was shut down before the job ended: ask again")
            job.status, outcome = "failed", "cancelled"
            raise
        except Exception as error:
            _LOG.error("a bug: %s", type(error).__name__, exc_info=error)
            job.error, job.status, outcome = INTERNAL, "failed", INTERNAL.code
        finally:
            self._queued.discard(job)
            job.ended = time.time()
            # The images that it began with are not needed again.
            job.request.images.clear()
            self._front.metrics.requests.labels("job", job.request.model, outcome).inc()
            job.change()
            self._sweep()

    def _sweep(self) -> None:
        oldest = time.time() - self._front.config.job_minutes * 60
        for job in [job for job in self._jobs.values() if job.ended is not None and job.ended < oldest]:
            self._forget(job)
        while sum(job.size for job in self._jobs.values()) > self._front.config.job_bytes:
            # The newest stays, however large: its client has had no time to fetch it.
            if not self._drop_oldest(but=1):
                return

    def _drop_oldest(self, but: int = 0) -> bool:
        """Forget the job that ended first, if more than ``but`` have ended; return whether one was forgotten."""
        ended = [job for job in self._jobs.values() if job.ended is not None]
        if len(ended) <= but:
            return False
        self._forget(min(ended, key=lambda job: job.ended or 0.0))
        return True

    def _forget(self, job: Job) -> None:
        self._jobs.pop(job.id, None)
        for name in [name for name, (_, identity) in self._by_key.items() if identity == job.id]:
            del self._by_key[name]


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
