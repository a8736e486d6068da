"""`sd2rt pull`: fetch a bundle from the Hugging Face Hub."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sd2rt.engines.bundle.cache import named_bundle
from sd2rt.engines.cli.options import JsonOption
from sd2rt.engines.console import print_line, print_path, progress_bar
from sd2rt.engines.printable import printable

if TYPE_CHECKING:
    from rich.progress import TaskID

    from sd2rt.engines.bundle.manifest import Manifest
    from sd2rt.engines.bundle.schema import File

_LARGE_BYTES = 1_000_000


def pull(
    repository: Annotated[
        str,
        typer.Argument(metavar="USER/NAME[@REVISION]", help="Repository with a bundle: sd2rt push made it."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Folder for the bundle; default: the repository's name, in the cache.",
            show_default=False,
        ),
    ] = None,
    engines: Annotated[bool, typer.Option("--engines", help="Fetch compiled engines too.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace another bundle of the same name.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch a bundle from the Hugging Face Hub; every file is verified. The same command resumes."""
    from sd2rt.engines.hub.pull import pull as fetch
    from sd2rt.engines.hub.repository import parse_repository

    parsed = parse_repository(repository)
    target = named_bundle(parsed.name) if output is None else Path(os.path.expanduser(output))
    with _shown(str(parsed), quiet or as_json) as (start, progress):
        pulled = fetch(parsed, target, engines=engines, replace=force, start=start, progress=progress)
    if as_json:
        files = (*pulled.manifest.files, *pulled.manifest.engine_files)
        facts = {
            "path": str(pulled.path),
            "identity": pulled.manifest.identity,
            "bytes": sum(file.size for file in files),
            "fresh": pulled.fresh,
        }
        print(json.dumps(facts))
    else:
        print_path(pulled.path, "" if pulled.fresh else " (already there)")


@contextmanager
def _shown(
    name: str, hidden: bool
) -> Iterator[tuple[Callable[[Manifest], None], Callable[[File, int], None]]]:
    """Show the bytes that have arrived: a bar on a terminal, and a line for each large file elsewhere."""
    columns = ("{task.description}", "bar", "bytes", "bytes per second")
    total, arrived = 0, 0
    task: TaskID | None = None
    with progress_bar(*columns, hidden=hidden, transient=True) as bar:

        def start(manifest: Manifest) -> None:
            nonlocal total, task
            files = (*manifest.files, *manifest.engine_files)
            total = sum(file.size for file in files)
            if bar is not None:
                task = bar.add_task("", total=total)
            elif not hidden:
                print_line(f"pulling {name}: {len(files)} files, {total / 1e6:.1f} MB")

        left: dict[str, int] = {}

        def progress(file: File, count: int) -> None:
            nonlocal arrived
            arrived += count
            left[file.path] = left.get(file.path, file.size) - count
            if bar is not None and task is not None:
                bar.update(task, advance=count, description=printable(file.path))
            elif not hidden and count and left[file.path] == 0 and file.size >= _LARGE_BYTES:
                print_line(f"{arrived / 1e6:.1f} of {total / 1e6:.1f} MB: {file.path}")

        yield start, progress
