"""A run of requests: its steps one by one, and its output."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, Self

import numpy as np

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.interface import Float32Array
from sd2rt.runtime.images.write import to_pil, to_unit
from sd2rt.runtime.metadata.png import png_text
from sd2rt.runtime.pipeline.gate import Gate
from sd2rt.runtime.pipeline.image_job import ImageJob
from sd2rt.runtime.pipeline.output import Output, unless_failed
from sd2rt.runtime.pipeline.prepare import prepare
from sd2rt.runtime.pipeline.progress import Progress
from sd2rt.runtime.pipeline.run_state import RunState
from sd2rt.runtime.pipeline.snapshot import Snapshot
from sd2rt.runtime.pipeline.step_loop import StepLoop
from sd2rt.runtime.provenance.safety import Safety
from sd2rt.runtime.request.fields import Images
from sd2rt.runtime.request.planned import PlannedRequest, each_image
from sd2rt.runtime.scheduling.work import NO_TERMS, Terms

_LOG = logging.getLogger(__name__)


class Run(Generic[Images]):
    """Generation of the images of one or several requests.

    Iterate over its steps (for progress, previews or stopping early), then take :meth:`result`. Runs of several
    threads take turns, or share denoiser calls. A run makes a step when it is asked for one, and ends when its result
    is taken, it is closed, its ``with`` block ends, a step fails, or neither it nor an iterator over its steps is
    referenced any more. Threads may share a run.

    Args:
        request_id: its name in the log; None for a random one.
        terms: its claims to the device.
        facts: returns the metadata of an image by its request.
        safety: checks each finished image; one that it refuses is an error of its request.
    """

    def __init__(
        self,
        loop: StepLoop,
        gate: Gate,
        planned: Sequence[PlannedRequest[Images]],
        request_id: str | None = None,
        terms: Terms = NO_TERMS,
        facts: Callable[[PlannedRequest[Any]], dict[str, Any]] | None = None,
        safety: Safety | None = None,
    ) -> None:
        if safety is not None and any(each.request.output_type == "latent" for each in planned):
            raise RequestError(
                "the safety check needs pixels, and output_type is 'latent': use 'pil' or 'np'"
            )
        self._safety = safety
        self._loop, self._begun, self._facts = loop, time.monotonic(), facts
        self.request_id = secrets.token_hex(4) if request_id is None else request_id
        self.planned = list(planned)
        self._using = threading.RLock()
        self._state = RunState(self.request_id, on_end=_Ending(loop, gate), terms=terms)
        self._decodes: list[ImageJob] = []
        gate.enter(self._state)
        try:
            self.seeds = [
                secrets.randbits(32) if each.request.seed is None else each.request.seed for each in planned
            ]
            self.jobs = [
                prepare(loop.networks, each, seed)
                for each, seed in zip(self.planned, self.seeds, strict=True)
            ]
            trajectories = [t for group in self.jobs for job in group for t in job.trajectories]
            self.total = sum(t.length for t in trajectories)
            loop.submit(self._state, trajectories)
        except BaseException:
            self.close()
            raise
        self._state.rest()
        if _LOG.isEnabledFor(logging.INFO):
            images = sum(map(len, self.jobs))
            _LOG.info(
                "request %s: %d images, %d steps, seeds %s; prepared in %.2f s",
                self.request_id,
                images,
                self.total,
                self.seeds,
                time.monotonic() - self._begun,
            )

    def __iter__(self) -> Iterator[Progress]:
        """Iterate over the remaining steps; ends early if the run is closed."""
        return _Steps(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Missing if the bundle's requests were refused before.
        if (state := getattr(self, "_state", None)) is not None:
            state.end()

    def close(self) -> None:
        """Skip the remaining steps: the run's images are in no further call.

        Does not wait. Any thread may call it.
        """
        self._state.end()

    @property
    def finished(self) -> bool:
        """True if no step is left."""
        return self._state.finished

    def settle(self) -> None:
        """Wait for a call that is under way, and if it was the last step of an image, for the device."""
        self._loop.settle()

    @property
    def first_call(self) -> float | None:
        """Time of :func:`time.monotonic` at which the first step began; None before."""
        return self._state.first_call

    def progress(self) -> Progress:
        """State after the last step."""
        return Progress(self._loop, self._state, self.jobs, self.total)

    def start(self, on_change: Callable[[RunState], None], user: object) -> None:
        """Have all steps made by another thread.

        Args:
            on_change: called after each step, decode or failure, in that thread; must be quick.
            user: the task that owns the run.
        """
        self._state.user, self._state.on_change = user, on_change
        self._state.want(to_the_end=True)

    def raise_failure(self) -> None:
        """Raise the EngineError that ended the run, if one did; once."""
        error, self._state.error = self._state.error, None
        if error is not None:
            self.close()
            raise error

    def _step(self) -> Progress | None:
        """Make a step; None if there is none left or the run is closed."""
        state = self._state
        with self._using:
            calls = state.calls
            if state.finished:
                self._loop.settle()
                return None
            self._drive(lambda: state.calls > calls, to_the_end=False)
            return None if state.calls == calls else self.progress()

    def _drive(self, until: Callable[[], bool], *, to_the_end: bool) -> None:
        """Have the loop make calls until ``until`` is true; raises the error that ends the run."""
        state = self._state
        if state.ended:
            return
        state.user = threading.current_thread()
        state.want(to_the_end=to_the_end)
        try:
            self._loop.drive(state, until)
        except BaseException:
            # A step may have been made in part.
            self.close()
            raise
        finally:
            state.rest()
        self.raise_failure()

    def result(self) -> list[Output[Images]]:
        """Make the remaining steps, decode, close, and return one output per request.

        Raises:
            EngineError: the device failed, or an image is not finite. The first error is raised, once all images are
                done.
        """
        return unless_failed(self.outcomes())

    def outcomes(self) -> list[Output[Images] | EngineError]:
        """Like :meth:`result`, but with an error as the outcome of a request if one of its images is not finite.

        Raises:
            EngineError: the device failed.
        """
        with self._using:
            self._drive(lambda: self._state.finished, to_the_end=True)
            return self._decode()

    def stop(self) -> list[Output[Images]]:
        """Skip the remaining steps, decode the current latents, and close; raises like :meth:`result`."""
        with self._using:
            if not self._state.ended:
                self._loop.collect(self._state)
            return unless_failed(self._decode())

    def _decode(self) -> list[Output[Images] | EngineError]:
        try:
            self.submit_decodes()
            self._drive(lambda: self.decoded, to_the_end=True)
            self.require_open()
        finally:
            self.close()
        return self.outputs()

    def submit_decodes(self) -> None:
        """Have the images of a finished run decoded.

        Raises:
            RequestError: the run is closed.
        """
        self.require_open()
        self.settle()
        jobs = [
            job
            for each, group in zip(self.planned, self.jobs, strict=True)
            if each.request.output_type != "latent" and all(job.error is None for job in group)
            for job in group
        ]
        self._decodes = jobs
        self._loop.decode(self._state, jobs)

    @property
    def decoded(self) -> bool:
        """True if all images are decoded."""
        return all(job in self._state.decoded for job in self._decodes)

    def submit_previews(self, snapshots: Sequence[Snapshot]) -> None:
        """Have snapshots of the run's images decoded; see :meth:`take_previews`.

        Raises:
            RequestError: the run is closed.
        """
        self.require_open()
        self._loop.decode(self._state, snapshots)

    def take_previews(self, snapshots: Sequence[Snapshot]) -> list[Float32Array] | None:
        """Take the decoded images [3, H, W] of snapshots; None if one is not decoded yet.

        Raises:
            EngineError: the device failed or ran out of memory.
        """
        return self._state.take_decoded(snapshots)

    def require_open(self) -> None:
        """Raise RequestError if the run is closed."""
        self._state.require_open()

    def outputs(self) -> list[Output[Images] | EngineError]:
        """Convert the decoded images of each request to its output type."""
        outputs = [
            self._output(each, seed, group)
            for each, seed, group in zip(self.planned, self.seeds, self.jobs, strict=True)
        ]
        for output in outputs:
            if isinstance(output, EngineError):
                _LOG.warning("request %s: %s", self.request_id, output)
        _LOG.info("request %s: finished after %.2f s", self.request_id, time.monotonic() - self._begun)
        return outputs

    def _output(
        self, planned: PlannedRequest[Images], seed: int, group: list[ImageJob]
    ) -> Output[Any] | EngineError:
        request = planned.request
        for job in group:
            if job.error is not None:
                return job.error
        seeds = [request.seeds_of(seed, index)[0] for index in range(len(group))]
        recipes = [] if self._facts is None else list(map(self._facts, each_image(planned, seed, len(group))))
        if request.output_type == "latent":
            return Output(np.stack([job.latents() for job in group]), seeds, recipes)
        units = []
        for job in group:
            decoded = self._state.decoded[job]
            if isinstance(decoded, EngineError):
                return decoded
            try:
                unit = job.finish(to_unit(decoded))
                if self._safety is not None:
                    self._safety.check(to_pil(unit))
                units.append(unit)
            except EngineError as error:
                return error
        if request.output_type == "np":
            return Output(np.stack(units), seeds, recipes)
        images = [to_pil(unit) for unit in units]
        for image, recipe in zip(images, recipes, strict=bool(recipes)):
            image.info.update(png_text(recipe))
        return Output(images, seeds, recipes)


class _Ending:
    """Ends a run's part in the loop and the gate; refers to neither run nor state."""

    def __init__(self, loop: StepLoop, gate: Gate) -> None:
        self._loop, self._gate = loop, gate

    def __call__(self, state: RunState) -> None:
        self._loop.ended(state)
        self._gate.leave(state)


class _Steps(Iterator[Progress]):
    """Iterator over the remaining steps of a run, which it keeps alive."""

    def __init__(self, run: Run[Any]) -> None:
        self._run = run

    def __next__(self) -> Progress:
        progress = self._run._step()
        if progress is None:
            raise StopIteration
        return progress
