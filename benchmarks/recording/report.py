"""How every benchmark here ends: a table for people, one line of JSON for machines, a file to keep."""

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
        help="write the result; without FILE, to benchmarks/results/<date>-<benchmark>.json",
    )


def summary(values: Iterable[float], digits: int = 4) -> dict[str, float]:
    """Median, smallest and largest."""
    found = list(values)
    return {
        "median": round(statistics.median(found), digits),
        "min": round(min(found), digits),
        "max": round(max(found), digits),
        "n": len(found),
    }


def finish(
    result: dict[str, Any], header: Sequence[str], rows: Iterable[Sequence[object]], output: str | None
) -> None:
    """Write the result where it was asked for, then print the table and the result as one line.

    ``result`` has ``benchmark``, its name, and ``machine``, whose date names the file.
    """
    if output is not None:
        write(result, output)
    print(table(header, rows))
    print()
    print(json.dumps(result))


@contextmanager
def interruptible(result: dict[str, Any], program: str) -> Iterator[None]:
    """Set ``result["complete"]`` at the end of the block, which Ctrl-C ends early: what is done by then is kept.

    Raises:
        SystemExit: the block ended with a ValueError.
    """
    result["complete"] = False
    try:
        yield
        result["complete"] = True
    except KeyboardInterrupt:
        print("\ninterrupted: what is done so far is kept", file=sys.stderr)
    except ValueError as error:
        sys.exit(f"{program}: {error}")


def path_of(result: dict[str, Any], output: str) -> Path:
    """Where a result goes: ``output``, or where that is empty a file of its own among the results."""
    name = f"{result['machine']['date'][:10]}-{result['benchmark']}.json"
    return Path(output) if output else RESULTS / name


def write(result: dict[str, Any], output: str) -> None:
    """Write a result where :func:`path_of` says."""
    path = path_of(result, output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns of equal width: the first to the left, the others to the right."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
