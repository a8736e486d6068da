"""A run for asyncio: progress, previews and the result without blocking the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self

from sd2rt.engines.errors import EngineError
from sd2rt.runtime.denoising.trajectory import Latents
from sd2rt.runtime.networks.preview import Preview
from sd2rt.runtime.pipeline.device_thread import DeviceThread
from sd2rt.runtime.pipeline.output import Output, unless_failed
from sd2rt.runtime.pipeline.run import Run
from sd2rt.runtime.pipeline.run_state import RunState
from sd2rt.runtime.request.fields import Images

if TYPE_CHECKING:
    from PIL.Image import Image


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
    """Latents of the run's images in the call, [B, C, h, w]; None unless previews were asked for."""
    _preview: Preview | None

    def previews(self) -> list[Image]:
        """Rough pictures of the images in the call, one pixel a latent; empty unless previews were asked for."""
        if self.latents is None or self._preview is None:
            return []
        return [self._preview.image(latents) for latents in self.latents]


class AsyncRun(Generic[Images]):
    """Generation of the images of one or several requests, for one task.

    Iterate over its progress, if you like, then await :meth:`result`. The run starts at the first of both, and does
    not wait for its consumer: progress that was not taken in time is left out. Cancelling the task, leaving the
    ``async with`` block or closing the run frees its place in the next denoiser call.

    Args:
        make: prepares the run, in a thread of ``starting``.
        starting: threads that may wait for a change of the networks.
        finishing: threads that never do.
        preview: returns the map for previews; None if there shall be none.
    """

    def __init__(
        self,
        make: Callable[[], Run[Images]],
        device: DeviceThread,
        starting: Executor,
        finishing: Executor,
        preview: Callable[[], Preview] | None,
    ) -> None:
        self._make, self._device, self._starting, self._finishing = make, device, starting, finishing
        self._make_preview = preview
        self._preview: Preview | None = None
        self._run: Run[Images] | None = None
        self._closed = False
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
        run = await self._started()
        try:
            while self._progress is None:
                if run.finished:
                    raise StopAsyncIteration
                await self._change()
        except asyncio.CancelledError:
            self.close()
            raise
        progress, self._progress = self._progress, None
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
        run = await self._started()
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

    @property
    def run(self) -> Run[Images] | None:
        """The prepared run; None before."""
        return self._run

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

    async def _started(self) -> Run[Images]:
        """Prepare the run and ask for all of its steps, if that has not been done."""
        if self._run is None:
            if self._make_preview is not None:
                self._preview = await self._in(self._finishing, self._make_preview)
            run = await self._in(self._starting, self._make, discard=Run.close)
            if self._run is None:
                self._run = run
                events = asyncio.get_running_loop()
                run.start(
                    partial(self._note, events, self._make_preview is not None), user=asyncio.current_task()
                )
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

    def _note(self, events: asyncio.AbstractEventLoop, with_latents: bool, state: RunState) -> None:
        """Pass on a change, in the thread that made the call."""
        run = self._run
        if run is None or events.is_closed():
            return
        progress = None
        if state.error is None and not state.ended and not state.decoded and state.active:
            now = run.progress()
            latents = now.latents() if with_latents else None
            progress = AsyncProgress(
                now.step, now.steps, now.timestep, now.done, now.total, latents, self._preview
            )
        events.call_soon_threadsafe(self._receive, progress)

    def _receive(self, progress: AsyncProgress | None) -> None:
        if progress is not None:
            self._progress = progress
        self._changed.set()

    @staticmethod
    async def _in(
        executor: Executor, call: Callable[[], Any], discard: Callable[[Any], None] | None = None
    ) -> Any:
        """Call in a thread; if the task is cancelled meanwhile, ``discard`` gets the result."""
        future = executor.submit(call)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if discard is not None:
                future.add_done_callback(partial(_discard, discard))
            raise


def _discard(discard: Callable[[Any], None], future: Future[Any]) -> None:
    if not future.cancelled() and future.exception() is None:
        discard(future.result())
