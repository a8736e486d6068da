"""Generation of one request in the worker: plan, steps with their events, and encoded images."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from sd2rt.engines.errors import EngineError, RequestError, UnsafeContentError
from sd2rt.runtime.images.depth_map import depth_image
from sd2rt.runtime.images.encode import encode
from sd2rt.runtime.metadata.infotext import write_parameters
from sd2rt.runtime.metadata.png import Facts, png_text, started_from_image
from sd2rt.runtime.metadata.save import name_of
from sd2rt.runtime.pipeline.async_run import AsyncProgress, AsyncRun
from sd2rt.runtime.pipeline.output import Output
from sd2rt.runtime.pipeline.pipeline import Pipeline
from sd2rt.runtime.pipeline.run import Run
from sd2rt.runtime.provenance.safety import Safety
from sd2rt.runtime.provenance.stamps import Stamps
from sd2rt.runtime.request.planned import PlannedRequest
from sd2rt.runtime.scheduling.work import Priority, Terms
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.generation import (
    Completed,
    DepthMap,
    Event,
    GeneratedImage,
    GenerationRequest,
    Partial,
    Started,
    Stepped,
)
from sd2rt.runtime.server.worker.bundles import ServedBundles
from sd2rt.runtime.server.worker.deadlines import own_deadline, require_reachable, seconds_of
from sd2rt.runtime.server.worker.planning import PlannedGeneration, plan_generation
from sd2rt.runtime.server.worker.request_warnings import collect
from sd2rt.runtime.server.worker.turnstile import Turnstile
from sd2rt.runtime.server.worker_settings import WorkerSettings

if TYPE_CHECKING:
    from PIL.Image import Image

_LOG = logging.getLogger(__name__)

PRIORITIES = {
    "interactive": Priority.INTERACTIVE,
    "normal": Priority.NORMAL,
    "batch": Priority.BATCH,
}
_REPORT_SECONDS = 0.1
"""Between events of steps, for a request that does not want every one: the front estimates waits from them."""
Emit = Callable[[Event], Awaitable[None]]
_Value = TypeVar("_Value")


class Generator:
    """Generates requests of one worker, many at once; use it from one event loop.

    Args:
        bundles: what is served.
        settings: limits.
        stamps: marks of the images.
        preparing: a thread that decodes images and plans.
        finishing: threads that encode images.
        safety: check that images must pass before they are sent.
    """

    def __init__(
        self,
        bundles: ServedBundles,
        settings: WorkerSettings,
        stamps: Stamps,
        preparing: Executor,
        finishing: Executor,
        safety: Safety | None = None,
    ) -> None:
        self._bundles, self._settings, self._stamps = bundles, settings, stamps
        self._safety = safety
        self._preparing, self._finishing = preparing, finishing
        # Each preparation waits for a turn at the device, so that the order is decided before.
        self._turnstile = Turnstile(2)

    async def generate(
        self, request: GenerationRequest, emit: Emit, began: Callable[[], None], early: asyncio.Event
    ) -> None:
        """Generate a request's images, and send its events; the last is :class:`Completed`.

        Args:
            emit: sends an event.
            began: called when work on the request begins.
            early: set if the picture is wanted as far as it is, instead of its remaining steps. Only a single picture
                with previews ends early.

        Raises:
            ServerError: the request cannot be honoured.
            Sd2rtError: the same, or it failed.
        """
        arrived = monotonic()
        deadline = None if request.deadline_ms is None else arrived + request.deadline_ms / 1000
        try:
            async with asyncio.timeout(None if request.deadline_ms is None else request.deadline_ms / 1000):
                await self._generate(request, emit, began, early, arrived, deadline)
        except TimeoutError:
            raise ServerError(
                "deadline_exceeded",
                f"the deadline of {request.deadline_ms} ms has passed: allow more time, or use fewer steps",
                param="deadline_ms",
            ) from None

    async def _generate(
        self,
        request: GenerationRequest,
        emit: Emit,
        began: Callable[[], None],
        early: asyncio.Event,
        arrived: float,
        deadline: float | None,
    ) -> None:
        priority = PRIORITIES.get(request.priority)
        if priority is None:
            raise ServerError(
                "invalid_value",
                f"priority is {request.priority!r}: use interactive, normal or batch",
                param="priority",
            )
        if not 1 <= request.count <= self._settings.max_images:
            raise ServerError(
                "invalid_value", f"n is {request.count}: use 1 to {self._settings.max_images}", param="n"
            )
        warnings = collect()
        async with AsyncExitStack() as stack:
            pipeline = await stack.enter_async_context(self._bundles.use(request.model, request.loras))
            terms = Terms(priority=priority, key=request.key, deadline=deadline)
            planned = None if request.images else await self._reachable(request, pipeline.pipeline, terms)
            async with self._turnstile.pass_through(priority):
                began()
                preparing = monotonic()
                if planned is None:
                    planned = await self._in(self._preparing, partial(self._plan, request))
                if deadline is not None and (others := self._bundles.others(pipeline.pipeline)):
                    waiting = await self._in(self._preparing, partial(seconds_of, others))
                    terms = replace(terms, deadline=own_deadline(deadline, waiting))
                run = await stack.enter_async_context(
                    pipeline.stream_planned(
                        planned.images,
                        request_id=request.request_id,
                        terms=terms,
                        previews=request.previews or request.partial_images > 0,
                    )
                )
                started = await run.start()
            prepared = monotonic()
            if request.previews and planned.images[0].task.name == "depth-to-image":
                await emit(DepthMap(await self._in(self._finishing, partial(_depth_map, started))))
            first_call, pictures = await self._follow(
                request, planned, run, emit, early, arrived, prepared - preparing
            )
            stepped = monotonic()
            unfinished = bool(pictures)
            if not unfinished:
                pictures = _pictures(await run.outcomes())
            decoded = monotonic()
            facts, tokens = await self._in(self._finishing, partial(_facts, pipeline.pipeline, planned))
            images = await asyncio.gather(
                *(
                    self._in(
                        self._finishing,
                        partial(
                            _finish,
                            request,
                            planned,
                            each,
                            picture,
                            own,
                            self._stamps,
                            unfinished,
                            self._safety,
                        ),
                    )
                    for each, picture, own in zip(planned.images, pictures, facts, strict=True)
                )
            )
        stages = {
            "prepare": prepared - preparing,
            "step": stepped - first_call,
            "decode": decoded - stepped,
            "finish": monotonic() - decoded,
        }
        await emit(
            Completed(
                images,
                {
                    **{
                        name: facts[0][name]
                        for name in ("task", "sampler", "schedule", "steps", "guidance_scale")
                    },
                    "width": planned.width,
                    "height": planned.height,
                    "queue_ms": _queue_ms(arrived, first_call, prepared - preparing),
                    "prompt_tokens": tokens,
                    "warnings": warnings,
                    "stages": {name: round(max(seconds, 0.0), 6) for name, seconds in stages.items()},
                    **({"infotexts": [*map(_infotext, facts)]} if request.infotexts else {}),
                },
            )
        )

    async def _reachable(
        self, request: GenerationRequest, pipeline: Pipeline, terms: Terms
    ) -> PlannedGeneration | None:
        """Plan a request with a deadline while it waits, and refuse it if that is out of reach; None without one."""
        if terms.deadline is None:
            return None
        planned = await self._in(self._preparing, partial(self._plan, request))
        others = self._bundles.others(pipeline)
        await self._in(self._preparing, partial(require_reachable, pipeline, others, planned, terms))
        return planned

    def _plan(self, request: GenerationRequest) -> PlannedGeneration:
        planned = plan_generation(
            request,
            self._bundles.manifests[request.model],
            max_steps=self._settings.max_steps,
            max_image_pixels=self._settings.max_image_pixels,
            max_side=self._settings.max_side,
        )
        try:
            self._stamps.check_size(*planned.finished)
        except RequestError as error:
            raise ServerError("size_not_supported", str(error), param="size") from None
        return planned

    async def _follow(
        self,
        request: GenerationRequest,
        planned: PlannedGeneration,
        run: AsyncRun[Any],
        emit: Emit,
        early: asyncio.Event,
        arrived: float,
        prepare_seconds: float,
    ) -> tuple[float, list[Image]]:
        """Send the events of a run's steps; return the time at which the first began, and pictures that end early."""
        started = await run.start()
        steps = started.total
        first_call: float | None = None
        wanted = request.partial_images if request.count == 1 else 0
        sent, report_at = 0, 0.0
        xmp = self._stamps.xmp(planned.images[0].request.image is not None)
        async for progress in run:
            if first_call is None and started.first_call is not None:
                first_call = started.first_call
                await emit(Started(_queue_ms(arrived, first_call, prepare_seconds)))
            preview = None
            # Rough pictures cannot be checked.
            if request.previews and progress.latents is not None and self._safety is None:
                preview = await self._in(self._finishing, partial(_preview, progress, xmp))
            now = monotonic()
            if request.every_step or request.previews or now >= report_at:
                await emit(Stepped(progress.done, steps, preview))
                report_at = now + _REPORT_SECONDS
            # Spread evenly; where steps are faster than decodes, there are fewer.
            reached = progress.done * (wanted + 1) // steps
            if sent < reached <= wanted:
                picture = (await progress.decoded())[0]
                data = await self._in(self._finishing, partial(_partial, request, picture, xmp, self._safety))
                if data is not None:
                    await emit(Partial(sent, data))
                sent += 1
            if early.is_set() and request.count == 1 and progress.done < steps:
                pictures = await progress.decoded()
                # An upscaler's are tiles.
                if [each.size for each in pictures] == [(planned.width, planned.height)]:
                    return monotonic() if first_call is None else first_call, pictures
        return monotonic() if first_call is None else first_call, []

    @staticmethod
    async def _in(executor: Executor, call: Callable[[], _Value]) -> _Value:
        # In the task's context, for the warnings.
        return await asyncio.get_running_loop().run_in_executor(executor, copy_context().run, call)


def _pictures(outcomes: Sequence[Output[list[Image]] | EngineError]) -> list[Image]:
    """Return the first picture of each outcome.

    Raises:
        EngineError: one has failed.
    """
    pictures = []
    for outcome in outcomes:
        if isinstance(outcome, EngineError):
            raise outcome
        pictures.append(outcome.images[0])
    return pictures


def _facts(pipeline: Pipeline, generation: PlannedGeneration) -> tuple[list[dict[str, Any]], int]:
    """Return the metadata of each image, and the number of the prompt's tokens."""
    facts_of = Facts(pipeline)
    prompt = generation.images[0].request.prompt or ""
    return [facts_of(each) for each in generation.images], pipeline.count_tokens(prompt)


def _finish(
    request: GenerationRequest,
    generation: PlannedGeneration,
    planned: PlannedRequest[Any],
    image: Image,
    facts: dict[str, Any],
    stamps: Stamps,
    unfinished: bool,
    safety: Safety | None,
) -> GeneratedImage:
    """Check an image and encode it, with its marks and settings.

    Raises:
        EngineError: the check refuses it, or failed.
    """
    if generation.finish is not None:
        image = generation.finish(image)
    if safety is not None:
        safety.check(image)
    png = request.output_format == "png"
    # Settings reproduce the finished picture, not one on the way.
    written = stamps.metadata and not unfinished

    def file_of(pixels: Image, xmp: str | None) -> bytes:
        return encode(
            pixels,
            request.output_format,
            png_text(facts) if written and png else {},
            quality=request.compression,
            comment=_infotext(facts) if written and not png else None,
            xmp=xmp,
        )

    name = f"image {name_of(facts)}"
    data = stamps.applied(image, request.output_format, started_from_image(facts), file_of, name)
    assert planned.request.seed is not None
    return GeneratedImage(data, planned.request.seed, image.width, image.height)


def _infotext(facts: dict[str, Any]) -> str:
    return write_parameters(facts, facts["version"])


def _partial(
    request: GenerationRequest, picture: Any, xmp: str | None, safety: Safety | None
) -> bytes | None:
    """Encode an unfinished picture; None if the check refuses it, which the finished one may pass."""
    if safety is not None:
        try:
            safety.check(picture)
        except UnsafeContentError:
            return None
    return encode(picture, request.output_format, {}, quality=request.compression, xmp=xmp)


def _depth_map(run: Run[Any]) -> bytes:
    return encode(depth_image(run.jobs[0][0].conditioning.raw_depth), "png", {})


def _preview(progress: AsyncProgress, xmp: str | None) -> bytes | None:
    pictures = progress.previews()
    return encode(pictures[0], "png", {}, xmp=xmp) if pictures else None


def _queue_ms(arrived: float, first_call: float, prepare_seconds: float) -> float:
    return round(max(0.0, first_call - arrived - prepare_seconds) * 1000, 3)
