"""Lines of standard input as rows, each read when it is needed: the writer may still be thinking of the next."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from sd2rt.engines.errors import RequestError
from sd2rt.engines.text_file import text_stream
from sd2rt.runtime.rows.reading import rows_of
from sd2rt.runtime.rows.row import Row


def rows_of_standard_input() -> Iterator[Row | RequestError]:
    """Yield the rows of standard input.

    Raises:
        RequestError: it has none, or see :func:`sd2rt.runtime.rows.reading.rows_of`.
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
