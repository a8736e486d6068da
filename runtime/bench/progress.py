"""What `sd2rt bench` is doing, on a terminal's standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sd2rt.runtime.bench.cases import Tell
    from sd2rt.runtime.pipeline.run import Progress

_SECONDS = 1.0


@contextmanager
def telling(hidden: bool) -> Iterator[Tell]:
    """What to call with what is being made, and after each of its steps with its progress.

    It draws at most once a second and from the thread that calls it: a bar that is drawn by a thread of its own would
    take its time from the steps that are measured.
    """
    if hidden or not sys.stderr.isatty():
        yield lambda what, progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(
        *columns, console=Console(stderr=True), redirect_stdout=False, auto_refresh=False, transient=True
    ) as bar:
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
