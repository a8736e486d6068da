"""Report a benchmark: a table, one line of JSON, and an optional result file."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "results"


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--output``."""
    parser.add_argument(
        "--output",
        "-o",
        nargs="?",
        const="",
        metavar="FILE",
        help="write the result to FILE; default: benchmarks/results/<date>-<benchmark>.json",
    )


def summary(values: Iterable[float], digits: int = 4) -> dict[str, float]:
    """Median, minimum, maximum and number of values."""
    numbers = list(values)
    return {
        "median": round(statistics.median(numbers), digits),
        "min": round(min(numbers), digits),
        "max": round(max(numbers), digits),
        "n": len(numbers),
    }


def finish(
    result: dict[str, Any], header: Sequence[str], rows: Iterable[Sequence[object]], output: str | None
) -> None:
    """Write the result if ``output`` is set, then print the table and the result as one line of JSON.

    ``result["benchmark"]`` and the date in ``result["machine"]`` name the file.
    """
    if output is not None:
        write(result, output)
    print(table(header, rows))
    print()
    print(json.dumps(result))


@contextmanager
def interruptible(result: dict[str, Any], program: str) -> Iterator[None]:
    """Set ``result["complete"]`` if the block ends normally; Ctrl-C ends it early and keeps the partial result.

    Raises:
        SystemExit: the block raised a ValueError.
    """
    result["complete"] = False
    try:
        yield
        result["complete"] = True
    except KeyboardInterrupt:
        print("\ninterrupted: the partial result is kept", file=sys.stderr)
    except ValueError as error:
        sys.exit(f"{program}: {error}")


def path_of(result: dict[str, Any], output: str) -> Path:
    """Path of a result: ``output``, or if that is empty, a dated file in the results folder."""
    name = f"{result['machine']['date'][:10]}-{result['benchmark']}.json"
    return Path(output) if output else RESULTS / name


def write(result: dict[str, Any], output: str) -> None:
    """Write a result to :func:`path_of`."""
    path = path_of(result, output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A text table: first column left-aligned, the others right-aligned."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
