"""Read rows: from lines of text or JSON, and from tables with a column for each option."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from sd2rt.engines.errors import MissingDependencyError, RequestError
from sd2rt.engines.install_hint import install_hint
from sd2rt.engines.json_text import parse_json
from sd2rt.engines.printable import shown
from sd2rt.runtime.rows.row import Row, is_text_option, parse_row, row_of

_MAX_CHARACTERS = 1 << 20
"""Of a line: a pipe need not end."""
_MAX_ROWS = 1_000_000


def read_rows(file: str) -> list[Row | RequestError]:
    """Read all rows of a file, or the errors in them.

    A .csv or .parquet file is a table with a column for each option; in others, each line is a prompt or an object
    of JSON.

    Args:
        file: its path, or ``-`` for standard input.

    Raises:
        RequestError: it cannot be read, or holds no row or too many.
        MissingDependencyError: it is a Parquet file, and pyarrow is not installed.
    """
    rows: list[Row | RequestError] = []
    for row in _rows_in(file):
        rows.append(row)
        if len(rows) > _MAX_ROWS:
            raise RequestError(f"{_name(file)} has more than {_MAX_ROWS} rows: split it")
    if not rows:
        raise RequestError(f"{_name(file)} holds no row: write a prompt or a JSON object a line")
    return rows


def _name(file: str) -> str:
    return "standard input" if file == "-" else file


def _rows_in(file: str) -> Iterator[Row | RequestError]:
    if file == "-":
        yield from rows_of(sys.stdin, "standard input")
        return
    try:
        match Path(file).suffix.lower():
            case ".parquet":
                yield from _parquet_rows(file)
            case ".csv":
                with open(file, encoding="utf-8-sig", newline="") as stream:
                    yield from _csv_rows(stream, file)
            case _:
                with open(file, encoding="utf-8") as stream:
                    yield from rows_of(stream, file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else shown(str(error))
        raise RequestError(f"{file} cannot be read ({reason}): name a file of JSON lines") from None


def rows_of(stream: TextIO, name: str) -> Iterator[Row | RequestError]:
    """Yield a row, or the error in it, for each line that is not empty.

    Raises:
        RequestError: the stream is not text, or a line is longer than any prompt.
    """
    line = 0
    while True:
        try:
            text = stream.readline(_MAX_CHARACTERS + 1)
        except UnicodeDecodeError as error:
            raise RequestError(
                f"{name} is not {error.encoding} text ({error.reason}): save it as UTF-8"
            ) from None
        if not text:
            return
        line += 1
        if len(text) > _MAX_CHARACTERS:
            raise RequestError(
                f"line {line} of {name} has more than {_MAX_CHARACTERS} characters: write one prompt a line"
            )
        if "\0" in text:
            raise RequestError(
                f"{name} is not text (line {line} has null characters, as UTF-16 does): save it as UTF-8"
            )
        text = text.rstrip("\r\n")
        if not text.strip():
            continue
        try:
            yield parse_row(text, line)
        except RequestError as error:
            yield RequestError(f"line {line}: {error}")


def _csv_rows(stream: TextIO, name: str) -> Iterator[Row | RequestError]:
    reader = csv.DictReader(stream, strict=True)
    try:
        for cells in reader:
            # The reader keeps cells without a column under None.
            if None in cells:
                yield RequestError(
                    f"line {reader.line_num}: it has more cells than the first line has columns"
                )
                continue
            values = {column: _cell(column, text) for column, text in cells.items() if text}
            yield _table_row(values, reader.line_num)
    except csv.Error as error:
        raise RequestError(f"{name} is not CSV (line {reader.line_num}: {error}): quote its texts") from None


def _cell(column: str, text: str) -> Any:
    """Return the value of a cell: numbers, booleans, lists and objects as JSON."""
    if is_text_option(column):
        return text
    try:
        return parse_json(text)
    except ValueError:
        return text


def _parquet_rows(file: str) -> Iterator[Row | RequestError]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise MissingDependencyError(
            f"{file} needs pyarrow, which is not installed: {install_hint('ray')}"
        ) from None
    number = 0
    with parquet.ParquetFile(file) as table:
        for batch in table.iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield _table_row(values, number)


def _table_row(values: dict[str, Any], line: int) -> Row | RequestError:
    try:
        return row_of(without_nulls(values), line)
    except RequestError as error:
        return RequestError(f"line {line}: {error}")


def without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out empty cells, and empty fields of objects in cells: tables have every column in every row."""
    return {
        name: {key: item for key, item in value.items() if item is not None}
        if isinstance(value, dict)
        else value
        for name, value in values.items()
        if value is not None
    }
