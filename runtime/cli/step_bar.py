"""The progress bar of `sd2rt run`: steps made, how fast, and how long the rest will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sd2rt.runtime.pipeline.run import Progress

Advance = Callable[[str, "Progress", int], None]


@contextmanager
def step_bar(hidden: bool, images: int) -> Iterator[Advance]:
    """What to call after each step, with the stage, its progress and the number of images in its batch; draws a
    bar for each stage on a terminal."""
    if hidden or not sys.stderr.isatty():
        yield lambda stage, progress, batch: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    name, rate = TextColumn("{task.description}"), TextColumn("{task.fields[rate]:.2f} it/s")
    columns = (name, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    # What is printed must reach standard output, which may be a file, while the bar is on the terminal.
    with Bar(*columns, console=Console(stderr=True), redirect_stdout=False) as bar:
        tasks: dict[str, Any] = {}
        finished: dict[str, int] = {}
        spent: dict[str, float] = {}
        last = time.perf_counter()

        def advance(stage: str, progress: Progress, batch: int) -> None:
            nonlocal last
            if stage not in tasks:
                tasks[stage], finished[stage], spent[stage] = (
                    bar.add_task(stage, total=None, rate=0.0),
                    0,
                    0.0,
                )
            now = time.perf_counter()
            spent[stage], last = spent[stage] + now - last, now
            done = finished[stage] + progress.done
            if progress.done == progress.total:
                finished[stage] = done
            each = progress.total // batch
            bar.update(tasks[stage], completed=done, total=each * images, rate=done / spent[stage])

        yield advance
