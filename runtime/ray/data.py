"""Ray Data: a processor that draws the rows of a dataset, in the way of `ray.data.llm.build_processor`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sd2rt.engines.errors import RequestError, Sd2rtError
from sd2rt.runtime.ray.config import ProcessorConfig
from sd2rt.runtime.ray.drawer import Drawer, DrawnRow
from sd2rt.runtime.ray.job import Job
from sd2rt.runtime.ray.session import import_ray
from sd2rt.runtime.rows.identity import IdentifiedRow, RowHashes, derived_seed
from sd2rt.runtime.rows.reading import without_nulls
from sd2rt.runtime.rows.row import row_of
from sd2rt.runtime.rows.series import RANDOM

if TYPE_CHECKING:
    from pyarrow import Table
    from ray.data import Dataset


def build_processor(
    config: ProcessorConfig,
    preprocess: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    postprocess: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Callable[[Dataset], Dataset]:
    """Return a function from a dataset of prompts to a dataset of images, which actors draw.

    A row is a prompt with options by column, under the names of JSON lines for `sd2rt batch`; empty cells are
    options that are not given. Each image is a row of the result, with all columns of its row and

    - ``image_bytes`` (or ``config.image_column``): the encoded file, null if it failed;
    - ``image_index``, from 0, and ``image_seed``;
    - ``row_hash``: of all that the row's images depend on;
    - ``error``: null, or the reason in one line. An error is its row's alone.

    Images are those of `sd2rt batch` and of a pipeline with the same seed. A row without a seed has one that is
    derived from its hash: it is the same in every run, and at rows of equal options unless ``config.id_column`` tells
    them apart.

    Args:
        preprocess: makes a row of columns that are options, for each row.
        postprocess: changes each row of the result.

    Raises:
        RequestError: the configuration or a file that it names is wrong.
        BundleError: there is no such bundle here, or it is damaged.
        MissingDependencyError: the extra ``ray``, or one that a mark or check needs, is not installed.
    """
    import_ray()
    job = Job.of(config)

    def process(dataset: Dataset) -> Dataset:
        if preprocess is not None:
            dataset = dataset.map(preprocess)
        dataset = draw(dataset, job, ColumnActor, ())
        return dataset if postprocess is None else dataset.map(postprocess)

    return process


def draw(dataset: Dataset, job: Job, actor: type, arguments: tuple[Any, ...]) -> Dataset:
    """Map the batches of a dataset by a pool of actors.

    Args:
        actor: class whose instances are called with batches; made of the job and ``arguments``.
    """
    from ray.data import ActorPoolStrategy

    config = job.config
    fewest, most = (
        config.concurrency
        if isinstance(config.concurrency, tuple)
        else (config.concurrency, config.concurrency)
    )
    return dataset.map_batches(
        actor,
        fn_constructor_args=(job, *arguments),
        batch_size=config.batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            min_size=fewest, max_size=most, max_concurrent_calls_per_actor=_blocks_at_a_time(config)
        ),
        num_cpus=config.actor_cpus(),
        num_gpus=config.actor_gpus(),
        **config.ray_remote_args,
    )


def _blocks_at_a_time(config: ProcessorConfig) -> int:
    """Blocks that an actor has at a time: while the last rows of one are drawn, those of others fill the calls."""
    wanted = 2 * config.batch_size if config.rows_in_flight is None else config.rows_in_flight
    return max(2, math.ceil(wanted / config.batch_size) + 1)


class Actor:
    """Base of the classes that Ray Data calls with batches: it opens the bundle when it is made.

    An error of the opening is raised by the first call: of that, unlike of one in its creation, an actor's caller
    gets the class and the message.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._opened: Drawer | Sd2rtError
        try:
            self._opened = Drawer(job)
        except Sd2rtError as error:
            self._opened = error

    def drawer(self) -> Drawer:
        """Return the open bundle.

        Raises:
            Sd2rtError: it could not be opened.
        """
        if isinstance(self._opened, Sd2rtError):
            raise self._opened
        return self._opened


class ColumnActor(Actor):
    """Rows with options by column to images in a column."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._hashes = RowHashes(job.settings)

    async def __call__(self, batch: Table) -> AsyncIterator[Table]:
        """Draw all rows of a batch, and yield the images of each."""
        drawer = self.drawer()
        tasks = [asyncio.ensure_future(drawer.draw(self._identified(cells))) for cells in batch.to_pylist()]
        for number, task in enumerate(tasks):
            yield self._images(batch.slice(number, 1), await task)

    def _identified(self, cells: dict[str, Any]) -> IdentifiedRow | RequestError:
        config = self._job.config
        name = "" if config.id_column is None else str(cells.get(config.id_column))
        kept = {*config.keep, config.id_column}
        try:
            row = row_of(without_nulls({key: cell for key, cell in cells.items() if key not in kept}), 0)
        except RequestError as error:
            return error
        seed = self._job.seed if row.seed is None else row.seed
        fixed = None if seed == RANDOM else seed
        key = self._hashes.named(row, fixed, name)
        return IdentifiedRow(key, replace(row, seed=derived_seed(key) if fixed is None else fixed))

    def _images(self, row: Table, drawn: DrawnRow) -> Table:
        """Return a table with a line for each image of a row [1, columns]."""
        import pyarrow as pa

        images = drawn.images
        columns = {
            self._job.config.image_column: pa.array([image.data for image in images], pa.binary()),
            "image_index": pa.array(range(len(images)), pa.int32()),
            "image_seed": pa.array([image.seed for image in images], pa.uint64()),
            "row_hash": pa.array([drawn.key or None] * len(images), pa.string()),
            "error": pa.array([image.error for image in images], pa.string()),
        }
        table = row.drop_columns([name for name in row.column_names if name in columns])
        table = table.take([0] * len(images))
        for name, values in columns.items():
            table = table.append_column(name, values)
        return table
