"""The command line's surroundings: which options were given, tables, and progress bars on a terminal.

The commands of all packages take them from here. rich is imported where something is drawn: help needs none of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer
    from rich.console import Console
    from rich.progress import Progress

_COLUMNS = {
    "bar": "BarColumn",
    "bytes": "DownloadColumn",
    "bytes per second": "TransferSpeedColumn",
    "count": "MofNCompleteColumn",
    "elapsed": "TimeElapsedColumn",
    "remaining": "TimeRemainingColumn",
    "spinner": "SpinnerColumn",
}
"""Names of a bar's columns, as rich has them."""


def given_options(context: typer.Context) -> set[str]:
    """Names of the parameters that were given on the command line, rather than by their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def table_console(width: int) -> Console:
    """A console for tables on standard output, ``width`` columns wide where that is no terminal: lines stay whole."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width, highlight=False, markup=False)


@contextmanager
def progress_bar(
    *columns: str, hidden: bool = False, transient: bool = False, auto_refresh: bool = True
) -> Iterator[Progress | None]:
    """A bar on standard error while the block lasts; None where it is hidden, or standard error is no terminal.

    Args:
        columns: ``bar``, ``bytes``, ``bytes per second``, ``count``, ``elapsed``, ``remaining``, ``spinner``, or a
            text in which ``{task...}`` is filled in.
        transient: remove the bar at the end.
        auto_refresh: draw from a thread; otherwise at each update with ``refresh=True`` alone.
    """
    if hidden or not sys.stderr.isatty():
        yield None
        return
    from rich import progress
    from rich.console import Console

    drawn = (
        getattr(progress, _COLUMNS[column])() if column in _COLUMNS else progress.TextColumn(column)
        for column in columns
    )
    # What is printed must reach standard output, which may be a file, while the bar is on the terminal.
    with progress.Progress(
        *drawn,
        console=Console(stderr=True),
        redirect_stdout=False,
        transient=transient,
        auto_refresh=auto_refresh,
    ) as bar:
        yield bar
