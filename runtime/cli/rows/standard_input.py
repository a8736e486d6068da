"""Lines of a stream as rows, each read when it is needed: the writer may still be thinking of the next."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TextIO

from sd2rt.engines.errors import RequestError
from sd2rt.engines.text_file import text_stream
from sd2rt.runtime.cli.rows.row import Row, parse_row

_MAX_CHARACTERS = 1 << 20
"""Of a line: a pipe need not end."""


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


def rows_of_standard_input() -> Iterator[Row | RequestError]:
    """Yield the rows of standard input.

    Raises:
        RequestError: it has none, or see :func:`rows_of`.
    """
    any_row = False
    if sys.stdin is None:
        raise RequestError("standard input is closed: give the prompt as an argument")
    binary = getattr(sys.stdin, "buffer", None)
    stream = sys.stdin if binary is None else text_stream(binary, sys.stdin.encoding)
    for row in rows_of(stream, "standard input"):
        any_row = True
        yield row
    if not any_row:
        raise RequestError("standard input holds no prompt: write one a line")
