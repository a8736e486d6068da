"""One worker in the front: its unfinished requests, and what it reported last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import Completed, GenerationRequest, ModelInfo, Started
from sd2rt.runtime.server.worker.job import Job
from sd2rt.runtime.server.worker.messages import event_of, model_of, request_frame
from sd2rt.runtime.server.worker.poison import Suspects
from sd2rt.runtime.server.worker.supervisor import Supervisor
from sd2rt.runtime.server.worker.wire import Frame, WireError
from sd2rt.runtime.server.worker_settings import WorkerSettings

_DEFAULT_STEPS = 50
_RESTART_SECONDS = 5.0


class Link:
    """The worker of one device, with those that follow if it dies.

    Args:
        settings: bundles and limits.
        device: where it runs.
        command: starts a worker.
        suspects: gets requests that were in dead workers.
    """

    def __init__(
        self, settings: WorkerSettings, device: str, command: Sequence[str], suspects: Suspects
    ) -> None:
        self.device, self._suspects = device, suspects
        self.supervisor = Supervisor(
            settings,
            device,
            on_frame=self._take,
            on_ready=self._ready,
            on_lost=self._lost,
            command=command,
        )
        self.jobs: dict[int, Job] = {}
        self.models: dict[str, ModelInfo] = {}
        self.step_seconds: dict[int, float] = {}
        self.memory_bytes: int | None = None
        self._calls: Counter[int] = Counter()
        self._calls_of_dead: Counter[int] = Counter()
        self._number = 0

    @property
    def calls(self) -> Counter[int]:
        """Denoiser calls by number of images, also those of workers that died."""
        return self._calls_of_dead + self._calls

    @property
    def images(self) -> int:
        """Unfinished images."""
        return sum(job.request.count for job in self.jobs.values())

    def has_loaded(self, model: str) -> bool:
        return model in self.models and self.models[model].loaded

    def seconds_left(self) -> float:
        """Estimate of the time until all requests are finished; only compares workers before a step is measured."""
        return sum(job.steps_left for job in self.jobs.values()) * self._step_seconds()

    def seconds_until_free(self, images: int) -> float:
        """Estimate of the time until as many images are finished."""
        seconds, freed = 0.0, 0
        for job in self.jobs.values():
            if freed >= images:
                break
            seconds += job.steps_left * self._step_seconds()
            freed += job.request.count
        return seconds

    def _step_seconds(self) -> float:
        """Measured seconds of a step of one image, in the batch size that costs least."""
        return min((seconds / batch for batch, seconds in self.step_seconds.items()), default=1.0)

    def add(self, request: GenerationRequest) -> Job:
        """Admit a request."""
        steps = request.fields.get("num_inference_steps")
        if not isinstance(steps, int):
            tasks = self.models[request.model].tasks.values()
            steps = max((task.steps for task in tasks), default=_DEFAULT_STEPS)
        self._number += 1
        job = Job(self._number, request, steps * request.count)
        self.jobs[job.number] = job
        return job

    async def submit(self, job: Job) -> None:
        """Send a request to the worker.

        Raises:
            ServerError: the request is too large. A dead worker is noticed by :meth:`Job.next_event`.
        """
        frame = request_frame(job.request)
        try:
            await self.supervisor.send(Frame({"id": job.number, **frame.header}, frame.attachments))
        except WireError as error:
            del self.jobs[job.number]
            raise ServerError("body_too_large", str(error)) from None
        except ValueError:
            del self.jobs[job.number]
            raise ServerError("invalid_value", "a number is not finite: use finite numbers") from None
        except OSError:
            self._end(job, _died())

    def cancel(self, job: Job) -> None:
        """Give up a request, which is unfinished until the worker has left it."""
        if job.number in self.jobs:
            self.supervisor.post(Frame({"id": job.number, "cancel": True}))

    def end_early(self, job: Job) -> None:
        """Ask for the picture of a request as far as it is."""
        self.supervisor.post(Frame({"id": job.number, "early": True}))

    def fail_all(self, error: ServerError) -> None:
        """End all requests with an error."""
        for job in tuple(self.jobs.values()):
            self._end(job, error)

    def _end(self, job: Job, error: ServerError) -> None:
        self.jobs.pop(job.number, None)
        job.fail(error)

    def _ready(self, frame: Frame) -> None:
        models = [model_of(fields) for fields in frame.header["ready"]]
        self.models = {model.id: model for model in models}

    def _lost(self) -> None:
        self._suspects.add(job.request for job in self.jobs.values() if job.began)
        self.fail_all(_died())
        self._calls_of_dead, self._calls = self.calls, Counter()

    def _take(self, frame: Frame) -> None:
        """Take a message of the worker.

        Raises:
            WireError: it is none.
        """
        header = frame.header
        if "stats" in header:
            self._note(header["stats"])
            return
        if "id" not in header or "event" not in header:
            raise WireError("received a message without a number")
        # One that was given up may be gone.
        job = self.jobs.get(header["id"])
        if job is None:
            return
        match header["event"]:
            case "began":
                job.began = True
            case "ended":
                self._end(job, ServerError("internal_error", "the worker gave up the request"))
            case "failed":
                job.failed_stage = header.get("stage")
                self._end(job, ServerError.from_json(header["error"]))
            case _:
                event = event_of(frame)
                if isinstance(event, Started):
                    job.started = True
                if isinstance(event, Completed):
                    del self.jobs[job.number]
                    self._suspects.clear(job.request)
                job.add(event)

    def _note(self, stats: dict[str, Any]) -> None:
        try:
            self._calls = Counter({int(batch): int(calls) for batch, calls in stats["calls"]})
            self.step_seconds = {int(batch): float(seconds) for batch, seconds in stats["step_seconds"]}
            self.memory_bytes = stats["memory_bytes"]
            loaded = set(stats["loaded"])
        except (KeyError, TypeError, ValueError):
            raise WireError("received numbers that are incomplete") from None
        self.models = {name: replace(model, loaded=name in loaded) for name, model in self.models.items()}


def _died() -> ServerError:
    return ServerError(
        "worker_died",
        "the worker died before the request was finished: send it again",
        retry_after=_RESTART_SECONDS,
    )
