"""The entry point for asyncio: calls of many tasks share the device."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.lora.file import Lora
from sd2rt.engines.printable import repr_of, shown
from sd2rt.runtime.pipeline.async_run import AsyncRun, Previews
from sd2rt.runtime.pipeline.device_thread import DeviceThread
from sd2rt.runtime.pipeline.opening import OpeningOptions
from sd2rt.runtime.pipeline.output import Output, joined
from sd2rt.runtime.pipeline.pipeline import Pipeline
from sd2rt.runtime.pipeline.run import Run
from sd2rt.runtime.pipeline.warm_up import Advance
from sd2rt.runtime.prompts.textual_inversion import Embedding
from sd2rt.runtime.request.fields import CallOptions, Images, OutputType
from sd2rt.runtime.request.planned import PlannedRequest
from sd2rt.runtime.request.request import Request
from sd2rt.runtime.scheduling.work import NO_TERMS, Terms

_STARTING = _FINISHING = 2
"""Threads that prepare, and that finish images: enough to keep up with one device."""
_Value = TypeVar("_Value")


class AsyncPipeline:
    """A loaded bundle for asyncio; made by :meth:`open`, an async context manager that owns the engines.

    Any number of tasks may call it: their images take turns at the device step by step, or share denoiser calls. A
    thread of the pipeline makes all calls; others prepare and finish images. Use it from one event loop.

    Args:
        pipeline: the loaded bundle, which it owns from now on.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._device = DeviceThread(pipeline.step_loop)
        self._starting = ThreadPoolExecutor(_STARTING, "sd2rt-start")
        self._finishing = ThreadPoolExecutor(_FINISHING, "sd2rt-finish")
        self._changing = ThreadPoolExecutor(1, "sd2rt-change")

    @classmethod
    def open(cls, bundle: str | os.PathLike[str], **options: Unpack[OpeningOptions]) -> Opening:
        """Open a bundle like :meth:`Pipeline.open`, in a thread.

        Use ``async with AsyncPipeline.open(...) as pipe``, or ``pipe = await AsyncPipeline.open(...)`` and
        :meth:`close`.
        """
        return Opening(partial(Pipeline.open, bundle, **options))

    async def close(self) -> None:
        """Wait for runs in flight, then free the engines and end the threads."""
        await _in(self._changing, self.pipeline.close)
        await asyncio.to_thread(self._device.stop)
        for executor in (self._starting, self._finishing, self._changing):
            executor.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @overload
    async def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        output_type: Literal["pil"] = "pil",
        **options: Unpack[CallOptions],
    ) -> Output: ...

    @overload
    async def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        output_type: Literal["np", "latent"],
        **options: Unpack[CallOptions],
    ) -> Output[NDArray[np.float32]]: ...

    @overload
    async def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        output_type: OutputType,
        **options: Unpack[CallOptions],
    ) -> Output[Any]: ...

    async def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        output_type: OutputType = "pil",
        **options: Unpack[CallOptions],
    ) -> Output[Any]:
        """Generate images from one or several prompts, with the options of :class:`Pipeline`.

        Cancelling the task gives up the images' places within one step.

        Raises:
            RequestError: an option is unknown or cannot be honoured.
            EngineError: the device failed, or a result is not finite.
        """
        async with self._start(lambda: self.pipeline.stream_call(prompt, output_type, options)) as run:
            return joined(await run.result(), output_type)

    @overload
    def stream(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        previews: Previews = False,
        output_type: Literal["pil"] = "pil",
        **options: Unpack[CallOptions],
    ) -> AsyncRun: ...

    @overload
    def stream(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        previews: Previews = False,
        output_type: Literal["np", "latent"],
        **options: Unpack[CallOptions],
    ) -> AsyncRun[NDArray[np.float32]]: ...

    @overload
    def stream(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        previews: Previews = False,
        output_type: OutputType,
        **options: Unpack[CallOptions],
    ) -> AsyncRun[Any]: ...

    def stream(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        previews: Previews = False,
        output_type: OutputType = "pil",
        **options: Unpack[CallOptions],
    ) -> AsyncRun[Any]:
        """Start the same call as an :class:`AsyncRun`: iterate over its progress, then await its result.

        Args:
            previews: True for rough pictures by :meth:`AsyncProgress.previews`, and decoded ones by
                :meth:`AsyncProgress.decoded`; ``decoder`` to decode all progress that is taken, each of which delays
                the run. Either copies the latents of every step.

        Raises:
            RequestError: ``previews`` is none of these.
        """
        return self._start(
            lambda: self.pipeline.stream(prompt, output_type=output_type, **options), previews=previews
        )

    def stream_planned(
        self,
        planned: Sequence[PlannedRequest[Images]],
        *,
        request_id: str | None = None,
        terms: Terms = NO_TERMS,
        previews: Previews = False,
    ) -> AsyncRun[Images]:
        """Start planned requests as one :class:`AsyncRun`; see :meth:`Pipeline.stream_planned`."""
        return self._start(
            lambda: self.pipeline.stream_planned(planned, request_id=request_id, terms=terms),
            previews=previews,
        )

    @overload
    async def generate(self, requests: Sequence[Request[Images]]) -> list[Output[Images]]: ...

    @overload
    async def generate(self, requests: Sequence[Request[Any]]) -> list[Output[Any]]: ...

    async def generate(self, requests: Sequence[Request[Any]]) -> list[Output[Any]]:
        """Generate the images of several requests, with the same results as one by one; see :meth:`__call__`."""
        async with self._start(lambda: self.pipeline.stream_requests(requests)) as run:
            return await run.result()

    def _start(self, make: Callable[[], Run[Images]], *, previews: Previews = False) -> AsyncRun[Images]:
        if not isinstance(previews, bool) and previews != "decoder":
            raise RequestError(f"previews is {shown(repr_of(previews))}: give True, False or 'decoder'")
        return AsyncRun(
            make, self._device, self._starting, self._finishing, previews, lambda: self.pipeline.preview
        )

    async def warm_up(
        self,
        sizes: Sequence[tuple[int, int]] | None = None,
        *,
        prompts: int = 1,
        chunks: int = 1,
        image_inputs: bool = False,
        progress: Advance | None = None,
    ) -> None:
        """Launch what requests will run, so that none waits for it; see :meth:`Pipeline.warm_up`.

        Cancelling the task ends it after the launch under way. ``progress`` is called in the event loop.
        """
        events, cancelled = asyncio.get_running_loop(), threading.Event()

        def advance(done: int, total: int) -> None:
            if cancelled.is_set():
                raise EngineError("the warm-up was cancelled")
            if progress is not None:
                events.call_soon_threadsafe(progress, done, total)

        warm_up = partial(
            self.pipeline.warm_up,
            sizes,
            prompts=prompts,
            chunks=chunks,
            image_inputs=image_inputs,
            progress=advance,
            within=self._device.run,
        )
        try:
            await self._change(warm_up)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def load_lora(
        self,
        source: str | os.PathLike[str],
        scale: float = 1.0,
        name: str | None = None,
        *,
        text_scale: float | None = None,
        allow_pickle: bool = False,
    ) -> Lora:
        """Add a LoRA once no run is in flight; runs that are started meanwhile wait. See :class:`Pipeline`."""
        load = partial(
            self.pipeline.load_lora, source, scale, name, text_scale=text_scale, allow_pickle=allow_pickle
        )
        return await self._change(load)

    async def unload_lora(self, name: str | None = None) -> None:
        """Remove one LoRA or all, once no run is in flight."""
        await self._change(partial(self.pipeline.unload_lora, name))

    async def load_embedding(
        self,
        source: str | os.PathLike[str] | Mapping[str, Any],
        token: str | None = None,
        *,
        allow_pickle: bool = False,
    ) -> Embedding:
        """Load a textual inversion, once no run is in flight."""
        load = partial(self.pipeline.load_embedding, source, token, allow_pickle=allow_pickle)
        return await self._change(load)

    async def unload_embedding(self, token: str) -> None:
        """Remove a textual inversion by its token, once no run is in flight."""
        await self._change(partial(self.pipeline.unload_embedding, token))

    async def _change(self, change: Callable[[], _Value]) -> _Value:
        self.pipeline.require_no_run_of(asyncio.current_task())
        return await _in(self._changing, change)


class Opening:
    """A pipeline that is being opened: await it, or enter it with ``async with``."""

    def __init__(self, opening: Callable[[], Pipeline]) -> None:
        self._opening = opening
        self._opened: AsyncPipeline | None = None

    def __await__(self) -> Generator[Any, None, AsyncPipeline]:
        return self._open().__await__()

    async def _open(self) -> AsyncPipeline:
        return AsyncPipeline(await asyncio.to_thread(self._opening))

    async def __aenter__(self) -> AsyncPipeline:
        self._opened = await self._open()
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._opened is not None
        await self._opened.close()


def _in(executor: ThreadPoolExecutor, call: Callable[[], _Value]) -> Awaitable[_Value]:
    return asyncio.wrap_future(executor.submit(call))
