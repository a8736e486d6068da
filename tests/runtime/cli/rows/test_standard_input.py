"""Lines of standard input in the encodings and with the line ends that programs write."""

from __future__ import annotations

import io
import os
import sys

import pytest

from sd2rt.engines.errors import RequestError
from sd2rt.engines.text_file import text_stream
from sd2rt.runtime.cli.rows.standard_input import rows_of_standard_input
from sd2rt.runtime.rows.row import Row


def prompts(monkeypatch: pytest.MonkeyPatch, data: bytes, encoding: str = "utf-8") -> list[str]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding=encoding))
    rows = list(rows_of_standard_input())
    assert all(isinstance(row, Row) for row in rows)
    return [row.prompt for row in rows if isinstance(row, Row)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(monkeypatch: pytest.MonkeyPatch, encoding: str, end: str) -> None:
    expected = ["a café, “quoted”", "北京\u2028🚀", "three"]
    assert prompts(monkeypatch, end.join([*expected, ""]).encode(encoding)) == expected


@pytest.mark.parametrize("order", ["le", "be"])
def test_both_orders_of_utf_16(monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    assert prompts(monkeypatch, "\ufeffa fox\r\nan owl".encode(f"utf-16-{order}")) == ["a fox", "an owl"]


def test_the_locales_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prompts(monkeypatch, "café\n".encode("cp1252"), "cp1252") == ["café"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            "café".encode("latin-1"),
            "standard input is not utf-8 text (unexpected end of data): save it as UTF-8",
        ),
        (
            "a “fox”\n".encode("cp1252"),
            "standard input is not utf-8 text (invalid start byte): save it as UTF-8",
        ),
        (
            "a fox\n".encode("utf-16-le"),
            "standard input is not text (line 1 has null characters, as UTF-16 does)",
        ),
        (b"\xff\xfea", "standard input is not utf-16-le text (truncated data): save it as UTF-8"),
        (b"\xff\xfe", "standard input holds no prompt: write one a line"),
    ],
)
def test_what_is_no_text(monkeypatch: pytest.MonkeyPatch, data: bytes, said: str) -> None:
    with pytest.raises(RequestError) as error:
        prompts(monkeypatch, data)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(RequestError, match=r"^standard input is closed"):
        list(rows_of_standard_input())


def test_a_line_is_read_before_the_next_is_written() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb", buffering=0) as sink:
        sink.write(b"a\n")
        lines = text_stream(source, "utf-8")
        assert lines.readline() == "a\n"
        sink.write("é\n".encode())
        assert lines.readline() == "é\n"
