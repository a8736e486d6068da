"""Draw rows by the step scheduler: several at a time, so that the device never waits for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sd2rt.engines.errors import EngineError, RequestError, Sd2rtError
from sd2rt.runtime.images.formats import suffix_of
from sd2rt.runtime.metadata.save import ImageTarget, Stamping, name_of
from sd2rt.runtime.pipeline.conditioning import result_size
from sd2rt.runtime.rows.identity import RowHashes
from sd2rt.runtime.rows.record import DONE, FAILED, BatchRecord
from sd2rt.runtime.rows.row import Row
from sd2rt.runtime.rows.series import RANDOM, Series
from sd2rt.runtime.scheduling.work import Priority, Terms

if TYPE_CHECKING:
    from PIL.Image import Image

    from sd2rt.runtime.pipeline.async_pipeline import AsyncPipeline
    from sd2rt.runtime.rows.image_requests import ImageRequests

_AHEAD = 2
"""Rows under way for each image of a call: while some are in a call, others are prepared and saved."""


def rows_in_flight(pipeline: AsyncPipeline) -> int:
    """Return the number of rows under way at which the device does not wait for one."""
    return _AHEAD * max(1, pipeline.pipeline.batch_size.shared)


async def draw_images(
    pipeline: AsyncPipeline, requests: ImageRequests, stamps: Stamping
) -> AsyncIterator[tuple[Image, dict[str, Any]] | EngineError]:
    """Draw the images of a row, and yield each with its facts, or its error, in order.

    Raises:
        RequestError: the bundle does not support the row, or its images cannot have the marks.
        EngineError: the device failed.
    """
    loras = pipeline.pipeline.loras
    planned = await asyncio.to_thread(requests.planned, pipeline.pipeline.manifest, loras)
    stamps.check_size(*result_size(pipeline.pipeline.manifest, planned.first))
    for batch in planned.batches(pipeline.pipeline.max_batch):
        async with pipeline.stream_planned(batch, terms=Terms(priority=Priority.BATCH)) as run:
            outcomes = await run.outcomes()
        for outcome in outcomes:
            yield outcome if isinstance(outcome, EngineError) else (outcome.images[0], outcome.recipes[0])


def file_name(key: str, facts: dict[str, Any], target: ImageTarget) -> str:
    """Name the file of an image of a row by the row's hash and the image's seed."""
    return f"{key[:12]}-{name_of(facts)}{suffix_of(target.file_format)}"


@dataclass(slots=True)
class Tally:
    """Rows by their outcome."""

    drawn: int = 0
    kept: int = 0
    failed: int = 0
    first_error: str = ""

    @property
    def total(self) -> int:
        return self.drawn + self.kept + self.failed

    def add(self, entry: dict[str, Any]) -> None:
        """Count the row of an entry of the record."""
        if entry["status"] == DONE:
            self.drawn += 1
        else:
            self.failed += 1
            self.first_error = self.first_error or entry["error"]


@dataclass(slots=True)
class BatchRun:
    """The rows of a batch, drawn with a pipeline.

    Args:
        rows: the rows, or the errors in them.
        random: rows without a seed get random ones, which do not count for their hashes.
        tell: called with each entry of the record, after it is written, and with None for a row that was done before.
    """

    rows: Iterator[Row | RequestError]
    series: Series
    hashes: RowHashes
    record: BatchRecord
    target: ImageTarget
    random: bool
    tell: Callable[[dict[str, Any] | None], None]

    async def draw(self, pipeline: AsyncPipeline) -> Tally:
        """Draw all rows that are not done, and return how many there were.

        Raises:
            EngineError: a file cannot be written.
        """
        tally = Tally()
        async with asyncio.TaskGroup() as group:
            for _ in range(rows_in_flight(pipeline)):
                group.create_task(self._work(pipeline, tally))
        return tally

    async def _work(self, pipeline: AsyncPipeline, tally: Tally) -> None:
        for row in self.rows:
            if isinstance(row, RequestError):
                self._keep(tally, {"status": FAILED, "error": str(row)})
                continue
            fixed = row.seed != RANDOM and (row.seed is not None or not self.random)
            seed = self.series.seed_of(row)
            key = self.hashes.of(row, seed if fixed else None)
            if self.record.is_done(key):
                self.series.skip(row)
                tally.kept += 1
                self.tell(None)
                continue
            self._keep(tally, {"row": key, "line": row.line, **await self._drawn(pipeline, row, key)})

    def _keep(self, tally: Tally, entry: dict[str, Any]) -> None:
        self.record.add(entry)
        tally.add(entry)
        self.tell(entry)

    async def _drawn(self, pipeline: AsyncPipeline, row: Row, key: str) -> dict[str, Any]:
        """Draw a row and return its entry. Its seeds are taken before anything is awaited."""
        entry: dict[str, Any] = {"prompt": row.prompt, "files": [], "seeds": []}
        try:
            requests = self.series.requests(row)
            if isinstance(requests, RequestError):
                raise requests
            async for drawn in draw_images(pipeline, requests, self.target.stamps):
                if isinstance(drawn, EngineError):
                    entry["error"] = entry.get("error", str(drawn))
                    continue
                image, facts = drawn
                name = file_name(key, facts, self.target)
                target = replace(self.target, path=self.target.path / name, is_file=True)
                await asyncio.to_thread(target.save, image, facts)
                entry["files"].append(name)
                entry["seeds"].append(facts["seed"])
        except Sd2rtError as error:
            entry["error"] = str(error)
        return {"status": FAILED if "error" in entry else DONE, **entry}
