"""The worker: takes requests from the wire, and sends their events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.bundle.sizes import LARGEST_SIDE, SMALLEST_SIDE
from sd2rt.engines.errors import (
    EngineError,
    NotFiniteError,
    OutOfMemoryError,
    Sd2rtError,
    UnsafeContentError,
)
from sd2rt.engines.interface import Device
from sd2rt.runtime.provenance.safety import Safety, load_safety
from sd2rt.runtime.provenance.stamps import Stamps
from sd2rt.runtime.scheduling.admission import AdmissionError
from sd2rt.runtime.server.generation import Event, GenerationRequest, ModelInfo, TaskInfo
from sd2rt.runtime.server.logs import request_id as logged_id
from sd2rt.runtime.server.logs import set_up_logs
from sd2rt.runtime.server.worker.bundles import ServedBundles
from sd2rt.runtime.server.worker.failures import server_error
from sd2rt.runtime.server.worker.generating import Generator
from sd2rt.runtime.server.worker.memory import used_bytes
from sd2rt.runtime.server.worker.messages import event_frame, request_of
from sd2rt.runtime.server.worker.wire import Connection, Frame, WireError
from sd2rt.runtime.server.worker_settings import WorkerSettings

_LOG = logging.getLogger(__name__)

_STATS_SECONDS = 0.5
_CLOSE_SECONDS = 5.0
"""Time for engines to be freed at the end; the end of the process frees them too."""


class Worker:
    """Serves the requests of one connection on one device.

    Args:
        connection: to the front.
        settings: bundles and limits.
        device: where they run.
    """

    def __init__(self, connection: Connection, settings: WorkerSettings, device: str) -> None:
        self._connection, self._settings = connection, settings
        self._device = Device(device)
        self._preparing = ThreadPoolExecutor(1, "sd2rt-plan")
        self._finishing = ThreadPoolExecutor(2, "sd2rt-encode")
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._safety: Safety | None = None
        self._early: dict[int, asyncio.Event] = {}
        """By request: set if its picture is wanted as far as it is."""

    async def run(self) -> None:
        """Load bundles, then serve until the front ends the connection or says so.

        Raises:
            WireError: the front sent something that is not a message.
        """
        receiving = asyncio.create_task(self._connection.receive())
        loading = asyncio.create_task(self._load())
        # The front may be gone before anything is loaded.
        await asyncio.wait((receiving, loading), return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            return
        if (loaded := loading.result()) is None:
            return
        bundles, stamps = loaded
        generator = Generator(bundles, self._settings, stamps, self._preparing, self._finishing, self._safety)
        reporting = asyncio.create_task(self._report(bundles))
        try:
            while (frame := await receiving) is not None:
                if frame.header.get("close"):
                    break
                self._take(frame, generator)
                receiving = asyncio.create_task(self._connection.receive())
            else:
                return
        finally:
            reporting.cancel()
        await self._end(bundles)

    async def _load(self) -> tuple[ServedBundles, Stamps] | None:
        """Load bundles, and tell the front which; None if that failed. Also returns the marks of images."""
        settings = self._settings
        try:
            stamps = Stamps.of(
                metadata=settings.metadata,
                watermark=settings.watermark,
                c2pa_cert=settings.c2pa_cert,
                c2pa_key=settings.c2pa_key,
            )
            if settings.safety is not None:
                self._safety = load_safety(settings.safety)
            bundles = ServedBundles(self._settings, self._device)
            await bundles.load_first()
        except Sd2rtError as error:
            await self._connection.send({"fatal": type(error).__name__, "message": str(error)})
            return None
        models = [asdict(self._model(name, bundles)) for name in bundles.manifests]
        await self._connection.send({"ready": models, "pid": os.getpid()})
        return bundles, stamps

    def _model(self, name: str, bundles: ServedBundles) -> ModelInfo:
        manifest = bundles.manifests[name]
        width, height = manifest.native_sizes[0]
        multiple = manifest.latents.size_multiple
        return ModelInfo(
            id=name,
            kind=manifest.variant,
            tasks=_tasks(manifest),
            width=width,
            height=height,
            precision=manifest.precision,
            identity=manifest.identity,
            license=manifest.license,
            created=bundles.created(name),
            memory_bytes=bundles.needed[name],
            size_multiple=multiple,
            smallest_side=SMALLEST_SIDE,
            largest_side=min(LARGEST_SIDE, self._settings.max_side) // multiple * multiple,
            upscale_factor=None if manifest.low_resolution is None else manifest.latents.vae_factor,
            sampler=manifest.sampler.name,
            text_layers=manifest.embeddings.layers,
            loras=tuple(self._settings.loras),
            embeddings=bundles.embeddings,
            loaded=name in bundles.loaded,
        )

    def _take(self, frame: Frame, generator: Generator) -> None:
        number = frame.header.get("id")
        if not isinstance(number, int):
            raise WireError("received a message without a number")
        if frame.header.get("cancel"):
            if number in self._tasks:
                self._tasks[number].cancel()
            else:
                # It was given up before it was sent, or is finished.
                self._connection.post({"id": number, "event": "ended"})
            return
        if frame.header.get("early"):
            if number in self._early:
                self._early[number].set()
            return
        self._early[number] = asyncio.Event()
        self._tasks[number] = asyncio.create_task(self._serve(number, request_of(frame), generator))

    async def _serve(self, number: int, request: GenerationRequest, generator: Generator) -> None:
        async def emit(event: Event) -> None:
            header, attachments = event_frame(event)
            await self._connection.send({"id": number, **header}, attachments)

        logged_id.set(request.request_id)
        try:
            await generator.generate(
                request,
                emit,
                lambda: self._connection.post({"id": number, "event": "began"}),
                self._early[number],
            )
        except asyncio.CancelledError:
            self._connection.post({"id": number, "event": "ended"})
        except OSError:
            # The front is gone: the end of its connection ends this process.
            return
        except Exception as error:
            await self._fail(number, request.request_id, error)
        finally:
            del self._tasks[number], self._early[number]

    async def _fail(self, number: int, request_id: str, error: Exception) -> None:
        failure = server_error(error)
        if failure.code == "internal_error":
            _LOG.error("request %s failed", request_id, exc_info=error)
        stage = error.stage if isinstance(error, NotFiniteError) else None
        with contextlib.suppress(OSError):
            await self._connection.send(
                {"id": number, "event": "failed", "error": failure.to_json(), "stage": stage}
            )
        survivable = (OutOfMemoryError, NotFiniteError, UnsafeContentError, AdmissionError)
        if (
            self._device.kind == "cuda"
            and isinstance(error, EngineError)
            and not isinstance(error, survivable)
        ):
            # A GPU's context does not recover from an error: the next worker has another.
            _LOG.error("the device failed: this worker ends")
            await asyncio.sleep(0.1)
            os._exit(5)

    async def _report(self, bundles: ServedBundles) -> None:
        """Send numbers for metrics, which also show that this process is alive."""
        last: dict[int, Counter[int]] = {}
        calls: Counter[int] = Counter()
        with contextlib.suppress(OSError):
            while True:
                seconds: dict[int, float] = {}
                counts: dict[int, Counter[int]] = {}
                for pipeline in bundles.pipelines:
                    loop = pipeline.step_loop
                    counts[id(loop)] = now = Counter(dict(loop.calls))
                    # Loops come and go with their bundles: only what was added is counted.
                    calls.update(now - last.get(id(loop), Counter()))
                    for batch, cost in dict(loop.step_seconds).items():
                        seconds[batch] = max(cost, seconds.get(batch, 0.0))
                last = counts
                await self._connection.send(
                    {
                        "stats": {
                            "calls": sorted(calls.items()),
                            "step_seconds": sorted(seconds.items()),
                            "memory_bytes": used_bytes(self._device),
                            "loaded": sorted(bundles.loaded),
                        }
                    }
                )
                await asyncio.sleep(_STATS_SECONDS)

    async def _end(self, bundles: ServedBundles) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(bundles.close(), _CLOSE_SECONDS)


def _tasks(manifest: Manifest) -> dict[str, TaskInfo]:
    return {
        name: TaskInfo(
            steps=defaults.num_inference_steps,
            guidance_scale=defaults.guidance_scale,
            strength=defaults.strength,
            noise_level=defaults.noise_level,
        )
        for name, defaults in manifest.supported.items()
    }


async def serve(connection: Connection) -> int:
    """Receive settings from the front, and serve it; returns the exit code."""
    frame = await connection.receive()
    if frame is None:
        return 0
    settings: dict[str, Any] = frame.header["configure"]
    parsed = WorkerSettings.from_json(settings)
    set_up_logs(parsed.log_format, parsed.log_level, f"worker {os.getpid()}")
    await Worker(connection, parsed, frame.header["device"]).run()
    return 0
