"""Command-line support for all packages: explicitly set options, lines on standard error, tables, and progress bars.

rich is imported only where something is drawn, so that ``--help`` does not load it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from sd2rt.engines.printable import printable

if TYPE_CHECKING:
    import typer
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

_COLUMNS = {
    "bar": "BarColumn",
    "bytes": "DownloadColumn",
    "bytes per second": "TransferSpeedColumn",
    "count": "MofNCompleteColumn",
    "elapsed": "TimeElapsedColumn",
    "remaining": "TimeRemainingColumn",
    "spinner": "SpinnerColumn",
}
"""rich's classes of progress-bar columns, by the names used here."""


def given_options(context: typer.Context) -> set[str]:
    """Names of the parameters set on the command line, as opposed to defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def report(line: str) -> None:
    """Print a line on standard error after ``sd2rt:``, for an error, warning or note."""
    print_line(f"sd2rt: {line}")


def print_line(line: str) -> None:
    """Print a line on standard error, made printable.

    Lost if standard error is full or has no reader: that must not end a run.
    """
    with suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)


def print_path(path: object, note: str = "") -> None:
    """Print a path on standard output: exactly in a pipe or file, and made printable on a terminal, as `ls` does."""
    line = f"{path}{note}"
    print(printable(line) if sys.stdout.isatty() else line, flush=True)


def add_row(table: Table, *cells: object) -> None:
    """Add a row of text to a table, made printable: most comes from a manifest or another file."""
    table.add_row(*(printable(cell) for cell in cells))


def table_console(width: int) -> Console:
    """Console for tables on standard output, ``width`` columns wide if that is not a terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width, highlight=False, markup=False)


@contextmanager
def progress_bar(
    *columns: str, hidden: bool = False, transient: bool = False, auto_refresh: bool = True
) -> Iterator[Progress | None]:
    """Show a progress bar on standard error during the block; yields None if hidden or not on a terminal.

    Args:
        columns: ``bar``, ``bytes``, ``bytes per second``, ``count``, ``elapsed``, ``remaining``, ``spinner``, or a
            format string with ``{task...}`` fields.
        transient: remove the bar at the end.
        auto_refresh: redraw from a thread; otherwise only at updates with ``refresh=True``.
    """
    if hidden or not sys.stderr.isatty():
        yield None
        return
    from rich import progress
    from rich.console import Console

    rich_columns = (
        getattr(progress, _COLUMNS[column])() if column in _COLUMNS else progress.TextColumn(column)
        for column in columns
    )
    # Printed lines must still go to standard output, which may be a file, while the bar is on the terminal.
    with progress.Progress(
        *rich_columns,
        console=Console(stderr=True),
        redirect_stdout=False,
        transient=transient,
        auto_refresh=auto_refresh,
    ) as bar:
        yield bar
