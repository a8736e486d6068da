"""Draw the rows of a batch by the step scheduler: several at a time, so that the device never waits for one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sd2rt.engines.errors import EngineError, RequestError, Sd2rtError
from sd2rt.runtime.cli.rows.batch_record import DONE, FAILED, BatchRecord, RowHashes
from sd2rt.runtime.cli.rows.row import Row
from sd2rt.runtime.cli.rows.series import RANDOM, Series
from sd2rt.runtime.images.formats import suffix_of
from sd2rt.runtime.metadata.save import ImageTarget, name_of
from sd2rt.runtime.pipeline.conditioning import result_size
from sd2rt.runtime.scheduling.work import Priority, Terms

if TYPE_CHECKING:
    from sd2rt.runtime.pipeline.async_pipeline import AsyncPipeline

_AHEAD = 2
"""Rows under way for each image of a call: while some are in a call, others are prepared and saved."""


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
        workers = _AHEAD * max(1, pipeline.pipeline.batch_size.shared)
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
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
        if entry["status"] == DONE:
            tally.drawn += 1
        else:
            tally.failed += 1
            tally.first_error = tally.first_error or entry["error"]
        self.tell(entry)

    async def _drawn(self, pipeline: AsyncPipeline, row: Row, key: str) -> dict[str, Any]:
        """Draw a row and return its entry. Its seeds are taken before anything is awaited."""
        entry: dict[str, Any] = {"prompt": row.prompt, "files": [], "seeds": []}
        try:
            requests = self.series.requests(row)
            if isinstance(requests, RequestError):
                raise requests
            loras = pipeline.pipeline.loras
            planned = await asyncio.to_thread(requests.planned, pipeline.pipeline.manifest, loras)
            size = result_size(pipeline.pipeline.manifest, planned.first)
            self.target.stamps.check_size(*size)
            for batch in planned.batches(pipeline.pipeline.max_batch):
                async with pipeline.stream_planned(batch, terms=Terms(priority=Priority.BATCH)) as run:
                    outcomes = await run.outcomes()
                for outcome in outcomes:
                    if isinstance(outcome, EngineError):
                        entry["error"] = entry.get("error", str(outcome))
                        continue
                    facts = outcome.recipes[0]
                    name = f"{key[:12]}-{name_of(facts)}{suffix_of(self.target.file_format)}"
                    target = replace(self.target, path=self.target.path / name, is_file=True)
                    await asyncio.to_thread(target.save, outcome.images[0], facts)
                    entry["files"].append(name)
                    entry["seeds"].append(facts["seed"])
        except Sd2rtError as error:
            entry["error"] = str(error)
        return {"status": FAILED if "error" in entry else DONE, **entry}
