"""Rows drawn by one actor: all its batches share the step scheduler of one open bundle."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from sd2rt.engines.errors import EngineError, RequestError, Sd2rtError
from sd2rt.runtime.pipeline.async_pipeline import AsyncPipeline
from sd2rt.runtime.ray.job import Job
from sd2rt.runtime.rows.drawing import draw_images, file_name, rows_in_flight
from sd2rt.runtime.rows.identity import IdentifiedRow


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """An image of a row: its encoded bytes, or its error."""

    name: str = ""
    """Of its file."""
    seed: int | None = None
    data: bytes | None = None
    error: str | None = None


@dataclass(slots=True)
class DrawnRow:
    """A row, with its images or the error before any was drawn."""

    key: str
    line: int
    prompt: str
    fields: dict[str, Any]
    images: list[DrawnImage] = field(default_factory=list)
    error: str | None = None
    """The first, of the row or of an image."""

    @classmethod
    def failed(cls, error: RequestError) -> DrawnRow:
        """Return a row that cannot be read."""
        return cls("", 0, "", {}, [DrawnImage(error=str(error))], str(error))


class Drawer:
    """Draws rows with a bundle. Tasks of one event loop share it.

    Raises:
        Sd2rtError: see :meth:`Job.open`.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._pipeline = AsyncPipeline(job.open())
        limit = job.config.rows_in_flight
        self._places = asyncio.Semaphore(rows_in_flight(self._pipeline) if limit is None else limit)
        # Rows have seeds when they come here.
        self._series = job.series(0)

    async def draw(self, identified: IdentifiedRow | RequestError) -> DrawnRow:
        """Draw a row as soon as there is a place; its errors are in the result."""
        if isinstance(identified, RequestError):
            return DrawnRow.failed(identified)
        row = identified.row
        drawn = DrawnRow(identified.key, row.line, row.prompt, row.fields)
        async with self._places:
            try:
                await self._draw_into(drawn, identified)
            except Sd2rtError as error:
                drawn.error = str(error)
            except Exception as error:
                # One row of a million must not end the job.
                drawn.error = f"a bug, {type(error).__name__}: {' '.join(str(error).split())}"
        if drawn.error is not None and not any(image.error for image in drawn.images):
            drawn.images.append(DrawnImage(error=drawn.error))
        return drawn

    async def _draw_into(self, drawn: DrawnRow, identified: IdentifiedRow) -> None:
        requests = self._series.requests(identified.row)
        if isinstance(requests, RequestError):
            raise requests
        target = self._job.target
        async for found in draw_images(self._pipeline, requests, target.stamps):
            if isinstance(found, EngineError):
                drawn.images.append(DrawnImage(error=str(found)))
                drawn.error = drawn.error or str(found)
                continue
            image, facts = found
            data = await asyncio.to_thread(target.encoded, image, facts)
            name = file_name(identified.key, facts, target)
            drawn.images.append(DrawnImage(name, facts["seed"], data))
