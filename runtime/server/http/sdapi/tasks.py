"""Running requests of AUTOMATIC1111's API: their progress, and a way to end them, for those who sent them."""

from __future__ import annotations

import asyncio
import base64
import time
from dataclasses import dataclass, field
from typing import Any

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import Completed, GeneratedImage, GenerationRequest, Started, Stepped
from sd2rt.runtime.server.http.front import Front
from sd2rt.runtime.server.http.sdapi.submissions import Plan

_MOST_TASKS = 10_000


@dataclass(frozen=True, slots=True)
class Caller:
    """Sender of a request."""

    account: str | None
    """Name of the key; None if the server has none."""
    origin: str | None
    """The same, or else the address."""


@dataclass(slots=True, eq=False)
class Task:
    """A request and how far it is."""

    id: str
    name: str
    caller: Caller
    iterations: int
    began: float = field(default_factory=time.monotonic)
    stamp: str = field(default_factory=lambda: time.strftime("%Y%m%d%H%M%S"))
    iteration: int = 0
    count: int = 1
    """Images of an iteration."""
    started: float | None = None
    step: int = 0
    steps: int = 0
    """Of the iteration, over all images."""
    preview: bytes | None = None
    skipped: bool = False
    interrupted: bool = False
    failure: str | None = None
    """Reason for which an iteration after the first ended the task."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """Ends the iteration."""

    @property
    def progress(self) -> float:
        """Share of the work that is done, from 0 to 1."""
        inner = self.step / self.steps if self.steps else 0.0
        return min((self.iteration + inner) / self.iterations, 1.0)


class Tasks:
    """Requests that run now, in the order of their arrival."""

    def __init__(self) -> None:
        self._tasks: list[Task] = []

    def of(self, caller: Caller, identity: str | None) -> list[Task]:
        """Return a caller's tasks: those that it sent, or those of its key that have an identity."""
        if identity is not None:
            return [
                task for task in self._tasks if task.id == identity and task.caller.account == caller.account
            ]
        return [task for task in self._tasks if task.caller.origin == caller.origin]

    def interrupt(self, caller: Caller, identity: str | None) -> None:
        """End a caller's tasks; iterations that are complete are answered."""
        for task in self.of(caller, identity):
            task.interrupted = True
            task.stop.set()

    def skip(self, caller: Caller, identity: str | None) -> None:
        """End the iteration that a caller's task is at, and go on with the next."""
        for task in self.of(caller, identity)[:1]:
            task.skipped = True
            task.stop.set()

    async def run(self, task: Task, front: Front, plan: Plan) -> list[Completed]:
        """Generate a task's images; return what was completed, by iteration.

        Raises:
            ServerError: it is refused, or its first iteration has failed; a later one ends the task.
        """
        if len(self._tasks) >= _MOST_TASKS:
            raise ServerError("queue_full", f"{_MOST_TASKS} tasks are unfinished: wait", retry_after=10)
        task.count = plan.request.count
        completed: list[Completed] = []
        first_seed = plan.request.fields.get("seed")
        self._tasks.append(task)
        try:
            for index in range(plan.iterations):
                task.iteration, task.step, task.steps = index, 0, 0
                try:
                    found = await self._iteration(task, front, plan.iteration(index, first_seed))
                except ServerError as error:
                    if not completed:
                        raise
                    task.interrupted, task.failure = True, error.message
                    break
                if found is not None:
                    completed.append(found)
                    if first_seed is None:
                        first_seed = found.images[0].seed - index * task.count
                if task.interrupted:
                    break
                task.stop.clear()
        finally:
            self._tasks.remove(task)
        return completed

    async def _iteration(self, task: Task, front: Front, request: GenerationRequest) -> Completed | None:
        """Generate one iteration; None if it was ended."""
        work = asyncio.ensure_future(_follow(task, front, request))
        stopping = asyncio.ensure_future(task.stop.wait())
        try:
            await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and task.step > 0 and request.count == 1:
                # As in AUTOMATIC1111, what is there so far is the picture.
                front.client.end_early(request.request_id)
                await asyncio.wait((work,))
            return work.result() if work.done() else None
        finally:
            for each in (work, stopping):
                each.cancel()
            await asyncio.wait((work, stopping))
            if not work.cancelled():
                # Retrieved, so that it is not reported as lost.
                work.exception()


async def _follow(task: Task, front: Front, request: GenerationRequest) -> Completed:
    last: Completed | None = None
    async for event in front.events(request, reason="interrupted"):
        match event:
            case Started():
                task.started = task.started or time.monotonic()
            case Stepped():
                task.step, task.steps = event.step, event.steps
                task.preview = event.preview or task.preview
            case Completed():
                last = event
    assert last is not None
    return last


def images_of(completed: list[Completed]) -> list[GeneratedImage]:
    """Return the images of all iterations."""
    return [image for each in completed for image in each.images]


def progress_of(tasks: list[Task], with_image: bool) -> dict[str, Any]:
    """Describe the progress of a caller's tasks: of the first that has started, in front of those that wait."""
    task = next((task for task in tasks if task.started is not None), tasks[0] if tasks else None)
    if task is None:
        return {
            "progress": 0.0,
            "eta_relative": 0.0,
            "state": _state(None, 0),
            "current_image": None,
            "textinfo": None,
        }
    progress = task.progress
    passed = 0.0 if task.started is None else time.monotonic() - task.started
    image = task.preview if with_image else None
    return {
        "progress": progress,
        "eta_relative": passed / progress - passed if progress > 0 else 0.0,
        "state": _state(task, sum(each.iterations - each.iteration for each in tasks)),
        "current_image": None if image is None else base64.b64encode(image).decode("ascii"),
        "textinfo": None,
    }


def _state(task: Task | None, jobs: int) -> dict[str, Any]:
    if task is None:
        task = Task("", "", Caller(None, None), 1, stamp="0")
    return {
        "skipped": task.skipped,
        "interrupted": task.interrupted,
        "stopping_generation": task.interrupted,
        "job": task.name,
        "job_count": jobs,
        "job_timestamp": task.stamp,
        "job_no": task.iteration,
        "sampling_step": task.step // task.count,
        "sampling_steps": task.steps // task.count,
        "task_id": task.id,
    }
