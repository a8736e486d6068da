"""Warnings and progress of the runtime's commands, on standard error."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sd2rt.engines.console import progress_bar

if TYPE_CHECKING:
    from sd2rt.runtime.bench.cases import Tell
    from sd2rt.runtime.pipeline.run import Progress

Advance = Callable[[str, "Progress", int], None]

_SECONDS = 1.0


@contextmanager
def shown_warnings(quiet: bool) -> Iterator[None]:
    """Warnings as a line each on standard error, or not at all."""

    shown: set[str] = set()

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:
        line = " ".join(str(message).splitlines())
        # Many images of one request say the same thing.
        if line not in shown:
            shown.add(line)
            print(f"sd2rt: warning: {line}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if quiet else "always")
        warnings.showwarning = show
        yield


@contextmanager
def step_bar(hidden: bool, images: int) -> Iterator[Advance]:
    """The progress of `sd2rt run`: steps made, how fast, and how long the rest will take.

    Yields what to call after each step, with the stage, its progress and the number of images in its batch; each
    stage has a bar.
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
            done = finished[stage] + progress.done
            if progress.done == progress.total:
                finished[stage] = done
            each = progress.total // batch
            bar.update(tasks[stage], completed=done, total=each * images, rate=done / spent[stage])

        yield advance


@contextmanager
def bench_bar(hidden: bool) -> Iterator[Tell]:
    """The progress of `sd2rt bench`: yields what to call with what is being made, and its progress.

    It draws at most once a second and from the thread that calls it: a bar that is drawn by a thread of its own would
    take its time from the steps that are measured.
    """
    columns = ("{task.description}", "bar", "count")
    with progress_bar(*columns, hidden=hidden, transient=True, auto_refresh=False) as bar:
        if bar is None:
            yield lambda what, progress: None
            return
        task, drawn = bar.add_task("", total=None), -_SECONDS

        def tell(what: str, progress: Progress | None) -> None:
            nonlocal drawn
            now = time.monotonic()
            if now - drawn < _SECONDS:
                return
            drawn = now
            done, total = (0, None) if progress is None else (progress.done, progress.total)
            bar.update(task, description=what, completed=done, total=total, refresh=True)

        yield tell
