"""Framed messages over a socket pair: a JSON header, and binary attachments. Every size is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

_START = struct.Struct(">4sIII")
"""Magic number, bytes of the header, number of attachments, and bytes of all attachments."""
_LENGTH = struct.Struct(">I")
_MAGIC = b"sd2w"

MAX_HEADER_BYTES = 4 << 20
MAX_ATTACHMENTS = 64
MAX_FRAME_BYTES = 1 << 30
"""Of all attachments together: ten images of 4096x4096 pixels, as noise in PNG, have half of it."""


class WireError(Exception):
    """The other side sent something that is not a frame, or one beyond the limits."""


class Frame(NamedTuple):
    """A message."""

    header: dict[str, Any]
    attachments: tuple[bytes, ...] = ()


def encode(header: dict[str, Any], attachments: Sequence[bytes] = ()) -> list[bytes]:
    """Encode a message as pieces to write one after another.

    Raises:
        WireError: it is beyond the limits.
        ValueError: the header holds numbers that JSON does not have.
    """
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    total = sum(map(len, attachments))
    if len(text) > MAX_HEADER_BYTES or len(attachments) > MAX_ATTACHMENTS or total > MAX_FRAME_BYTES:
        raise WireError(
            f"a message of {len(text)} bytes with {len(attachments)} attachments of {total} bytes is too large"
        )
    lengths = b"".join(_LENGTH.pack(len(attachment)) for attachment in attachments)
    return [_START.pack(_MAGIC, len(text), len(attachments), total) + lengths + text, *attachments]


class Connection:
    """One end of a socket pair, for asyncio. One task may receive; any may send."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._sending = asyncio.Lock()

    @classmethod
    async def open(cls, end: socket.socket) -> Self:
        """Take over a connected socket."""
        end.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=end)
        return cls(reader, writer)

    async def send(self, header: dict[str, Any], attachments: Sequence[bytes] = ()) -> None:
        """Send a message, and wait while the other side does not read.

        Raises:
            WireError: the message is beyond the limits. Nothing was sent.
            OSError: the connection has ended.
        """
        pieces = encode(header, attachments)
        async with self._sending:
            # A task that is cancelled while it waits must not leave half a frame: all pieces are handed over first.
            self._writer.writelines(pieces)
            await self._writer.drain()

    def post(self, header: dict[str, Any]) -> None:
        """Send a short message without waiting; does nothing if the connection has ended."""
        if not self._writer.is_closing():
            self._writer.writelines(encode(header))

    async def receive(self) -> Frame | None:
        """Receive the next message; None if the other side has closed the connection or died.

        Raises:
            WireError: it is not a frame, or beyond the limits.
        """
        try:
            start = await self._reader.readexactly(_START.size)
        except (asyncio.IncompleteReadError, OSError):
            return None
        magic, header_bytes, count, total = _START.unpack(start)
        if magic != _MAGIC or header_bytes > MAX_HEADER_BYTES or count > MAX_ATTACHMENTS:
            raise WireError("received bytes that are not a frame")
        if total > MAX_FRAME_BYTES:
            raise WireError(f"received a frame of {total} bytes, the limit is {MAX_FRAME_BYTES}")
        try:
            packed = await self._reader.readexactly(_LENGTH.size * count)
            lengths = [length for (length,) in _LENGTH.iter_unpack(packed)]
            if sum(lengths) != total:
                raise WireError("received a frame whose attachments have another length than it says")
            text = await self._reader.readexactly(header_bytes)
            attachments = [await self._reader.readexactly(length) for length in lengths]
        except (asyncio.IncompleteReadError, OSError):
            return None
        try:
            header = json.loads(text)
        except (ValueError, RecursionError):
            raise WireError("received a header that is not JSON") from None
        if not isinstance(header, dict):
            raise WireError("received a header that is not an object")
        return Frame(header, tuple(attachments))

    async def flushed(self) -> None:
        """Wait until everything that was sent has been handed to the system, then close."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def abort(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()
