"""A run for asyncio: progress, previews and the result without blocking the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.interface import Float32Array
from sd2rt.runtime.denoising.trajectory import Latents
from sd2rt.runtime.networks.preview import Preview
from sd2rt.runtime.pipeline.device_thread import DeviceThread
from sd2rt.runtime.pipeline.output import Output, unless_failed
from sd2rt.runtime.pipeline.run import Run
from sd2rt.runtime.pipeline.run_state import RunState
from sd2rt.runtime.pipeline.snapshot import Snapshot
from sd2rt.runtime.request.fields import Images

if TYPE_CHECKING:
    from PIL.Image import Image

Previews = bool | Literal["decoder"]
"""True for rough previews, ``decoder`` for decoded ones."""


@dataclass(frozen=True, slots=True)
class AsyncProgress:
    """State of a run after a denoiser call. The run goes on meanwhile."""

    step: int
    """Steps made for the run's first image in the call, counted from 1."""
    steps: int
    """Steps that this image takes in total."""
    timestep: float
    """Training timestep of this image in the call."""
    done: int
    """Steps made so far, over all images of the run."""
    total: int
    """Steps of the whole run, over all images."""
    latents: Latents | None
    """Latents of the run's images, or tiles, in the call, [B, C, h, w]; None unless previews were asked for."""
    _snapshots: Sequence[Snapshot]
    _preview: Preview | None
    _run: AsyncRun[Any]
    _pictures: Sequence[Image] | None = None

    def previews(self) -> list[Image]:
        """Make a picture of each image in the call; see :meth:`Progress.previews`.

        They are the decoder's if the run was started with ``previews="decoder"``; with ``previews=True`` they are
        rough and have one pixel a latent; otherwise there are none.
        """
        if self._pictures is not None:
            return list(self._pictures)
        if self._preview is None:
            return []
        return [snapshot.rough(self._preview) for snapshot in self._snapshots]

    def preview(self) -> Image | None:
        """Make a picture of the first image in the call; None if the run has no previews."""
        return next(iter(self.previews()), None)

    async def decoded(self) -> list[Image]:
        """Decode the images in the call, as they were then, while the run goes on; none unless it has previews.

        Raises:
            RequestError: the run is closed; it is once its result is taken.
            EngineError: the device failed or ran out of memory.
        """
        return await self._run._decoded(self._snapshots)


class AsyncRun(Generic[Images]):
    """Generation of the images of one or several requests, for one task.

    Iterate over its progress, if you like, then await :meth:`result`. The run starts at the first of both, and does
    not wait for its consumer: progress that was not taken in time is left out. Cancelling the task, leaving the
    ``async with`` block or closing the run frees its place in the next denoiser call.

    Args:
        make: prepares the run, in a thread of ``starting``.
        starting: threads that may wait for a change of the networks.
        finishing: threads that never do.
        previews: True for rough ones by ``preview``, ``decoder`` for decodes of all progress that is taken.
        preview: returns the map for rough previews.
    """

    def __init__(
        self,
        make: Callable[[], Run[Images]],
        device: DeviceThread,
        starting: Executor,
        finishing: Executor,
        previews: Previews,
        preview: Callable[[], Preview],
    ) -> None:
        self._make, self._device, self._starting, self._finishing = make, device, starting, finishing
        self._previews, self._make_preview = previews, preview
        self._preview: Preview | None = None
        self._run: Run[Images] | None = None
        self._closed = False
        self._calls = 0
        self._progress: AsyncProgress | None = None
        self._changed = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AsyncProgress:
        """Wait for the next step.

        Raises:
            RequestError: a request cannot be honoured.
            EngineError: the device failed.
        """
        run = await self.start()
        try:
            settled = False
            while self._progress is None:
                if run.finished and settled:
                    raise StopAsyncIteration
                if run.finished:
                    # The last step may be under way still, its progress not passed on.
                    await self._in(self._finishing, run.settle)
                    settled = True
                else:
                    await self._change()
            progress, self._progress = self._progress, None
            if self._previews == "decoder":
                progress = replace(progress, _pictures=await progress.decoded())
        except asyncio.CancelledError:
            self.close()
            raise
        return progress

    async def result(self) -> list[Output[Images]]:
        """Make the remaining steps, decode, close, and return one output per request.

        Raises:
            RequestError: a request cannot be honoured, or the run is closed.
            EngineError: the device failed, or an image is not finite.
        """
        return unless_failed(await self.outcomes())

    async def outcomes(self) -> list[Output[Images] | EngineError]:
        """Like :meth:`result`, but with an error as the outcome of a request if one of its images is not finite."""
        run = await self.start()
        try:
            while not run.finished:
                await self._change()
            await self._in(self._finishing, run.submit_decodes)
            self._device.wake()
            while not run.decoded:
                await self._change()
            run.require_open()
            outputs: list[Output[Images] | EngineError] = await self._in(self._finishing, run.outputs)
            return outputs
        finally:
            self.close()

    async def _decoded(self, snapshots: Sequence[Snapshot]) -> list[Image]:
        if not snapshots:
            return []
        run = await self.start()
        await self._in(self._finishing, partial(run.submit_previews, snapshots))
        self._device.wake()
        while (decoded := run.take_previews(snapshots)) is None:
            await self._change()
        pictures: list[Image] = await self._in(self._finishing, partial(_pictures, snapshots, decoded))
        return pictures

    def close(self) -> None:
        """Skip the remaining steps: the run's images are in no further call. Does not wait."""
        self._closed = True
        if self._run is not None:
            self._run.close()
        self._changed.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def start(self) -> Run[Images]:
        """Prepare the run and ask for all of its steps, if that has not been done.

        Raises:
            RequestError: a request cannot be honoured.
            EngineError: the device failed while inputs were encoded, or a deadline is out of reach.
        """
        if self._run is None:
            if self._previews is True:
                self._preview = await self._in(self._finishing, self._make_preview)
            run = await self._in(self._starting, self._make, discard=Run.close)
            if self._run is None:
                self._run = run
                events = asyncio.get_running_loop()
                run.start(partial(self._note, events), user=asyncio.current_task())
                self._device.wake()
            if self._closed:
                run.close()
        return self._run

    async def _change(self) -> None:
        """Wait until something has happened to the run.

        Raises:
            RequestError: the run is closed.
            EngineError: the device failed.
        """
        run = self._run
        assert run is not None
        run.raise_failure()
        run.require_open()
        await self._changed.wait()
        self._changed.clear()
        run.raise_failure()

    def _note(self, events: asyncio.AbstractEventLoop, state: RunState) -> None:
        """Pass on a change, in the thread that made the call."""
        run = self._run
        if run is None or events.is_closed():
            return
        progress = None
        # Decodes are changes too, but no steps.
        if state.error is None and state.calls != self._calls:
            self._calls = state.calls
            # The run may be closed at any time.
            with suppress(RequestError):
                progress = self._progress_of(run)
        events.call_soon_threadsafe(self._receive, progress)

    def _progress_of(self, run: Run[Images]) -> AsyncProgress:
        now, wanted = run.progress(), bool(self._previews)
        latents, snapshots = (now.latents(), now.snapshots()) if wanted else (None, ())
        return AsyncProgress(
            now.step,
            now.steps,
            now.timestep,
            now.done,
            now.total,
            latents,
            snapshots,
            self._preview,
            self,
        )

    def _receive(self, progress: AsyncProgress | None) -> None:
        if progress is not None:
            self._progress = progress
        self._changed.set()

    @staticmethod
    async def _in(
        executor: Executor, call: Callable[[], Any], discard: Callable[[Any], None] | None = None
    ) -> Any:
        """Call in a thread, which sees the task's context variables.

        If the task is cancelled meanwhile, ``discard`` gets the result.
        """
        future = executor.submit(copy_context().run, call)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if discard is not None:
                future.add_done_callback(partial(_discard, discard))
            raise


def _pictures(snapshots: Sequence[Snapshot], decoded: Sequence[Float32Array]) -> list[Image]:
    return [snapshot.picture(image) for snapshot, image in zip(snapshots, decoded, strict=True)]


def _discard(discard: Callable[[Any], None], future: Future[Any]) -> None:
    if not future.cancelled() and future.exception() is None:
        discard(future.result())
