"""Text files and streams as programs save them: encodings and line ends."""

from __future__ import annotations

import codecs
import io
from typing import TYPE_CHECKING, BinaryIO, TextIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_MARKS = (
    # UTF-32's little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(data: bytes, encoding: str = "utf-8") -> str:
    """Decode a text, with line feeds as line ends.

    Its byte order mark decides, else it is UTF-8, or in ``encoding``. Other encodings cannot be told apart.

    Raises:
        ValueError: it is neither; the message completes "the file is".
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), encoding)
    if codecs.lookup(encoding).name == "utf-8":
        data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"not {encoding} text ({error.reason} in line {line}): save it as UTF-8") from None
    if data and not text and encoding != "utf-8":
        raise ValueError("empty but for a byte order mark")
    if "\0" in text:
        raise ValueError("not utf-8 text (it holds null characters, as UTF-16 does): save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def text_stream(stream: BinaryIO, encoding: str) -> TextIO:
    """Decode a stream like :func:`decode_text`, without waiting for more than its first byte if that is no mark.

    Reading raises UnicodeDecodeError.
    """
    start = b""
    marks = (codecs.BOM_UTF8, *(mark for mark, _ in _MARKS))
    while any(len(start) < len(mark) and mark.startswith(start) for mark in marks):
        byte = stream.read(1)
        if not byte:
            break
        start += byte
    named = next((name for mark, name in _MARKS if start.startswith(mark)), encoding)
    if start.startswith(codecs.BOM_UTF8) and codecs.lookup(encoding).name == "utf-8":
        start = start.removeprefix(codecs.BOM_UTF8)
    joined = io.BufferedReader(_Joined(start, stream))
    return io.TextIOWrapper(joined, encoding=named)


class _Joined(io.RawIOBase):
    """Bytes that were read already, and the rest of their stream."""

    def __init__(self, start: bytes, rest: BinaryIO) -> None:
        self._start, self._rest = start, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        if self._start:
            data, self._start = self._start[: len(view)], self._start[len(view) :]
        else:
            # Buffered streams have read1(), which returns what there is instead of waiting for more.
            data = getattr(self._rest, "read1", self._rest.read)(len(view))
        view[: len(data)] = data
        return len(data)
