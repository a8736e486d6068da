"""`sd2rt batch`: draw the rows of a file of JSON lines into a folder; a later command draws what is left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from sd2rt.engines.bundle.cache import complete_bundle
from sd2rt.engines.bundle.file_lock import FileLock
from sd2rt.engines.console import print_path, progress_bar, report
from sd2rt.engines.errors import EngineError, RequestError
from sd2rt.engines.option_groups import OptionGroup
from sd2rt.runtime.cli.console import shown_warnings
from sd2rt.runtime.cli.demo_bundle import bundle_or_demo
from sd2rt.runtime.cli.device_options import TiledDeviceOptions
from sd2rt.runtime.cli.options import (
    ImageOptions,
    PromptOptions,
    SamplingOptions,
    SeedOptions,
)
from sd2rt.runtime.cli.output_options import Quality, SafetyCheck
from sd2rt.runtime.cli.provenance.options import StampOptions
from sd2rt.runtime.cli.rows.ray_options import RayOptions
from sd2rt.runtime.cli.run_output import check_output
from sd2rt.runtime.images.formats import FileFormat
from sd2rt.runtime.rows.reading import read_rows
from sd2rt.runtime.rows.row import Row
from sd2rt.runtime.rows.series import RANDOM, Series

if TYPE_CHECKING:
    from sd2rt.runtime.rows.drawing import BatchRun, Tally


@dataclass(frozen=True, slots=True)
class BatchOutputOptions(OptionGroup):
    """The folder to write, and lines to print."""

    panel: ClassVar[str] = "Output"

    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder for the images and manifest.jsonl, with a line for each row. Rows that it has are kept.",
        ),
    ]
    file_format: Annotated[FileFormat, typer.Option("--format", "--output-format", help="File format.")] = (
        "png"
    )
    quality: Quality = None
    safety: SafetyCheck = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line for each row.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False


def batch(
    prompt: PromptOptions,
    sampling: SamplingOptions,
    images: ImageOptions,
    seeds: SeedOptions,
    device: TiledDeviceOptions,
    output: BatchOutputOptions,
    marks: StampOptions,
    ray: RayOptions,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[BUNDLE] FILE",
            help="A bundle (default: the demo), and a file with a row a line, - for standard input: a prompt, or "
            'JSON such as {"prompt": "a fox", "seed": 3, "size": "512x768"}; or a .csv or .parquet table. '
            "Options apply to rows without them.",
            autocompletion=complete_bundle,
        ),
    ],
) -> None:
    """Draw the rows of a file of JSON lines, resuming where an earlier command stopped."""
    if len(words) > 2:
        raise RequestError(f"{len(words)} arguments, expected [BUNDLE] FILE: give one file")
    *bundles, file = words
    ray.check()
    if images.upscale is not None:
        raise RequestError(
            "--upscale is for 'sd2rt run': enlarge the images of the folder with a batch of their own"
        )
    if any(value == "-" for value in images.files().values()):
        raise RequestError("--image, --mask and --depth read files here, not standard input: name them")
    fields = prompt.fields() | sampling.fields() | images.fields() | seeds.fields()
    seed = None if seeds.seed == RANDOM else seeds.seed
    series = Series(fields, seeds.count, seed, prompt.lora_folder())
    rows = read_rows(file)
    if output.output.suffix and not output.output.is_dir():
        raise RequestError(f"--output {output.output} has a suffix, but a batch is a folder: name one")
    check_output(output.output, 2)
    from sd2rt.runtime.metadata.save import ImageTarget

    stamps = marks.stamps()
    target = ImageTarget.of(output.output, output.file_format, output.quality, stamps=stamps)
    from sd2rt.runtime.provenance.safety import load_safety

    safety = None if output.safety is None else load_safety(output.safety)
    embeddings = prompt.embeddings()
    named = _named_loras(rows, Series(fields, seeds.count, seed, prompt.lora_folder()), prompt.lora_dir)
    loras = prompt.loras(named)
    path = bundle_or_demo(bundles[0] if bundles else None, output.quiet or output.as_json)
    from sd2rt.engines.bundle.manifest import read_manifest
    from sd2rt.engines.bundle.reader import locate
    from sd2rt.engines.bundle.sizes import TILE
    from sd2rt.runtime.prompts.textual_inversion import check_embedding
    from sd2rt.runtime.rows.drawing import BatchRun
    from sd2rt.runtime.rows.identity import RowHashes, row_settings
    from sd2rt.runtime.rows.record import NAME, BatchRecord

    manifest = read_manifest(locate(path))
    for embedding in embeddings:
        check_embedding(embedding, manifest)
    tile = TILE if device.tile is None else device.tile
    opening = device.opening(path) | {"tile": tile}
    settings = row_settings(
        fields,
        seeds.count,
        manifest,
        loras=loras,
        embeddings=embeddings,
        tile=tile,
        precision=opening["precision"],
        target=target,
        stamps=stamps,
        safety=output.safety,
    )
    hidden = output.quiet or output.as_json
    job = None
    if ray.ray:
        values = opening | {"bundle": str(path), "loras": tuple(prompt.lora or ()), "safety": output.safety}
        values |= {"embeddings": tuple(prompt.embedding or ()), "allow_pickle": prompt.allow_pickle}
        values |= {"file_format": target.file_format, "quality": target.quality, **marks.values()}
        job = ray.job(values, fields, seeds.count, seed, prompt.lora_dir, named)
        # The same hashes, by which either command goes on with the other's folder.
        assert json.dumps(job.settings, default=repr) == json.dumps(settings, default=repr)
    with _locked(output.output), shown_warnings(output.quiet), _row_bar(hidden, len(rows)) as tell:

        def told(entry: dict[str, Any] | None) -> None:
            tell()
            if output.as_json and entry is not None:
                print(json.dumps(entry), flush=True)

        if job is not None:
            tally = ray.draw(rows, job, output.output, told)
        else:
            record = BatchRecord(output.output)
            run = BatchRun(iter(rows), series, RowHashes(settings), record, target, seed is None, told)
            tally = asyncio.run(_drawn(run, path, {**opening, "loras": loras, "safety": safety}, embeddings))
    _conclude(tally, output.output if ray.to != "folder" else output.output / NAME, output)


async def _drawn(run: BatchRun, path: str | Path, opening: dict[str, Any], embeddings: list[Any]) -> Tally:
    from sd2rt.runtime.pipeline.async_pipeline import AsyncPipeline

    async with AsyncPipeline.open(path, **opening) as pipeline:
        for embedding in embeddings:
            pipeline.pipeline.add_embedding(embedding)
        try:
            return await run.draw(pipeline)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None


def _conclude(tally: Tally, path: Path, output: BatchOutputOptions) -> None:
    if not output.quiet:
        report(f"note: {tally.drawn} rows drawn, {tally.kept} kept, {tally.failed} failed")
        if not output.as_json:
            print_path(path)
    if tally.failed:
        raise EngineError(
            f"{tally.failed} of {tally.total} rows failed, see {path}; the first: {tally.first_error}"
        )


def _named_loras(rows: list[Row | RequestError], series: Series, folder: str | None) -> tuple[str, ...]:
    """Return the words for ``--lora`` of the LoRAs that the first valid row names: all rows must name the same."""
    if folder is not None:
        for row in rows:
            series.requests(row)
            if series.named_loras is not None:
                return series.named_loras
    return ()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other batches out of a folder.

    Raises:
        EngineError: another one writes to it, or it cannot be made.
    """
    lock = FileLock(folder / ".batch.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not lock.acquire():
            raise EngineError(f"another batch writes to {folder}: wait for it, or choose another folder")
    except OSError as error:
        raise EngineError(f"{folder} cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _row_bar(hidden: bool, rows: int) -> Iterator[Any]:
    """Show the rows that are done and the remaining time; yields a function to call after each."""
    with progress_bar("{task.description}", "bar", "count", "elapsed", "remaining", hidden=hidden) as bar:
        if bar is None:
            yield lambda: None
            return
        task = bar.add_task("rows", total=rows)
        yield lambda: bar.advance(task)
