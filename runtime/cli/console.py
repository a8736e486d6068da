"""Warnings and progress of the runtime's commands, on standard error."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sd2rt.engines.console import progress_bar, report

if TYPE_CHECKING:
    from sd2rt.runtime.bench.cases import Tell
    from sd2rt.runtime.pipeline.progress import Progress

Advance = Callable[[str, "Progress", int], None]

_SECONDS = 1.0


@contextmanager
def shown_warnings(quiet: bool) -> Iterator[None]:
    """Print each distinct warning as one line on standard error while the block lasts; none if ``quiet``."""

    shown: set[str] = set()

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:
        line = " ".join(str(message).splitlines())
        # Many images of one request cause the same warning.
        if line not in shown:
            shown.add(line)
            report(f"warning: {line}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if quiet else "always")
        warnings.showwarning = show
        yield


@contextmanager
def step_bar(hidden: bool, images: int | None) -> Iterator[Advance]:
    """Show the progress of `sd2rt run`: steps done, steps a second, and the remaining time, a bar for each stage.

    Without a number of images, as for a stream of prompts, the total grows with each batch.

    Yields a function to call after each step, with the stage, its progress and the number of images in its batch.
    """
    columns = (
        "{task.description}",
        "bar",
        "count",
        "{task.fields[rate]:.2f} it/s",
        "remaining",
    )
    with progress_bar(*columns, hidden=hidden) as bar:
        if bar is None:
            yield lambda stage, progress, batch: None
            return
        tasks: dict[str, Any] = {}
        finished: dict[str, int] = {}
        spent: dict[str, float] = {}
        last = time.perf_counter()

        def advance(stage: str, progress: Progress, batch: int) -> None:
            nonlocal last
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=None, rate=0.0)
                finished[stage], spent[stage] = 0, 0.0
            now = time.perf_counter()
            spent[stage], last = spent[stage] + now - last, now
            before = finished[stage]
            done = before + progress.done
            if progress.done == progress.total:
                finished[stage] = done
            each = progress.total // batch
            total = before + progress.total if images is None else each * images
            bar.update(tasks[stage], completed=done, total=total, rate=done / spent[stage])

        yield advance


@contextmanager
def bench_bar(hidden: bool) -> Iterator[Tell]:
    """Show the progress of `sd2rt bench`; yields a function to call with a stage and its progress.

    The bar is drawn at most once a second, by the calling thread: a drawing thread would take time from the
    measured steps.
    """
    columns = ("{task.description}", "bar", "count")
    with progress_bar(*columns, hidden=hidden, transient=True, auto_refresh=False) as bar:
        if bar is None:
            yield lambda stage, progress: None
            return
        task, drawn = bar.add_task("", total=None), -_SECONDS

        def tell(stage: str, progress: Progress | None) -> None:
            nonlocal drawn
            now = time.monotonic()
            if now - drawn < _SECONDS:
                return
            drawn = now
            done, total = (0, None) if progress is None else (progress.done, progress.total)
            bar.update(task, description=stage, completed=done, total=total, refresh=True)

        yield tell
