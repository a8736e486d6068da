"""Draw the rows of a batch with Ray into files; a later run draws what is left, after a kill too.

Ray Data has checkpoints of its own (``DataContext.checkpoint_config``), for datasets that are read from files and
written by its own sinks. They are not used here: its sinks write files in place, whose first half is there if the
writer is killed; a row that failed counts as done; and workers that outlive a killed driver may still write.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sd2rt.engines import errors
from sd2rt.engines.errors import EngineError, RequestError, Sd2rtError
from sd2rt.runtime.ray.config import ProcessorConfig
from sd2rt.runtime.ray.data import Actor, draw
from sd2rt.runtime.ray.drawer import DrawnRow
from sd2rt.runtime.ray.fence import newest_run
from sd2rt.runtime.ray.job import Job, with_absolute_paths
from sd2rt.runtime.ray.parts import OutputKind, PartWriter, rows_in_parts
from sd2rt.runtime.ray.session import ray_session
from sd2rt.runtime.rows.drawing import Tally
from sd2rt.runtime.rows.identity import IdentifiedRow, RowHashes, identified
from sd2rt.runtime.rows.record import BatchRecord
from sd2rt.runtime.rows.row import Row

if TYPE_CHECKING:
    from pyarrow import Table

_MOST_BLOCKS = 2000
"""Of a dataset: each is an object of Ray's."""
_JOB_ERROR = "ends the job"
"""Key of the class of an error that is not a row's, in an entry."""
Tell = Callable[[dict[str, Any] | None], None]


def draw_rows(
    rows: Iterable[Row | RequestError],
    job: Job,
    folder: Path,
    kind: OutputKind,
    tell: Tell,
    address: str | None = None,
) -> Tally:
    """Draw all rows that the folder does not have, and return how many there were.

    Hashes, seeds and images are those of `sd2rt batch`, but for random seeds, which are derived from the hashes. A
    folder of images has the same record, so that either command goes on with the other's.

    Args:
        folder: exists, and no other process has its lock.
        kind: files to write; see :mod:`sd2rt.runtime.ray.parts`.
        tell: called with each entry of the record, after it is written, and with None for a row that was done before.
        address: of a Ray cluster whose machines share the folder; None for processes on this machine.

    Raises:
        EngineError: a file cannot be written, actors cannot open the bundle, or Ray failed.
        RequestError: files in the folder cannot be read.
        MissingDependencyError: the extra ``ray`` is not installed.
    """
    # Actors have working directories of their own.
    tally, folder = Tally(), folder.absolute()
    try:
        with newest_run(folder) as token:
            writer = PartWriter(folder, kind, job.target.file_format, token)
            record = BatchRecord(folder) if kind == "folder" else None
            done = set() if kind == "folder" else rows_in_parts(folder, kind)

            def keep(entry: dict[str, Any]) -> None:
                if record is not None:
                    record.add(entry)
                tally.add(entry)
                tell(entry)

            unreadable, pending = [], []
            for row in identified(rows, job.series(job.seed), RowHashes(job.settings), job.seed is None):
                if isinstance(row, RequestError):
                    unreadable.append(DrawnRow.failed(row))
                elif row.key in done or (record is not None and record.is_done(row.key)):
                    tally.kept += 1
                    tell(None)
                else:
                    pending.append(
                        replace(row, row=replace(row.row, fields=with_absolute_paths(row.row.fields)))
                    )
            for entry in writer.write(unreadable):
                keep(entry)
            for entry in _drawn(pending, job, writer, address):
                keep(entry)
    except OSError as error:
        raise EngineError(f"{folder} cannot be written: {error.strerror or error}") from error
    return tally


def _drawn(
    rows: list[IdentifiedRow], job: Job, writer: PartWriter, address: str | None
) -> Iterator[dict[str, Any]]:
    """Yield the entry of each row once its files are there."""
    if not rows:
        return
    with ray_session(address) as ray:
        blocks = _number_of_blocks(len(rows), job.config)
        with warnings.catch_warnings():
            # It reads its own deprecated fields.
            warnings.simplefilter("ignore")
            context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = context.print_on_execution_start = False
        with ray.data.DataContext.current(context):
            dataset = ray.data.from_items(
                [{"row": pickle.dumps(row)} for row in rows], override_num_blocks=blocks
            )
            dataset = draw(dataset, job, FileActor, (writer,))
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for entry in map(json.loads, cast("Table", batch)["entry"].to_pylist()):
                    if _JOB_ERROR in entry:
                        raise getattr(errors, entry[_JOB_ERROR])(entry["error"])
                    yield entry
        except ray.exceptions.RayError as error:
            raise EngineError(f"Ray failed ({' '.join(str(error).split())[:500]}): see its logs") from error


def _number_of_blocks(rows: int, config: ProcessorConfig) -> int:
    """Return the number of blocks of a dataset: one a batch, and one for each actor if there are few rows."""
    actors = config.concurrency if isinstance(config.concurrency, int) else config.concurrency[0]
    return min(rows, max(actors, -(-rows // config.batch_size)), _MOST_BLOCKS)


class FileActor(Actor):
    """Rows to files."""

    def __init__(self, job: Job, writer: PartWriter) -> None:
        super().__init__(job)
        self._writer = writer

    async def __call__(self, batch: Table) -> AsyncIterator[Table]:
        """Draw all rows of a batch, write them, and yield their entries."""
        import pyarrow as pa

        try:
            drawer = self.drawer()
            rows = [pickle.loads(row) for row in batch["row"].to_pylist()]
            drawn = await asyncio.gather(*map(drawer.draw, rows))
            entries = await asyncio.to_thread(self._writer.write, drawn)
        except Sd2rtError as error:
            # Ray would pass on its text alone, in that of a traceback.
            entries = [{_JOB_ERROR: type(error).__name__, "error": str(error)}]
        yield pa.table({"entry": [json.dumps(entry) for entry in entries]})
