"""A connection that does not wait for ever: for headers, for readers, or for the rest of a refused body."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from sd2rt.runtime.server.errors import ErrorCode, ServerError

MAX_HEADER_BYTES = 64 << 10
_DISCARD_SECONDS = 5.0
"""Time to read on and discard the body of a request that was answered before its end: closing at once would reset the
connection, and the client could lose the answer."""


class Connection(H11Protocol):
    """uvicorn's connection, with time limits.

    Class attributes are set for a server by :func:`connection_class`.
    """

    header_seconds: float
    write_seconds: float
    most: int

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._discard_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._refuse(
                "rate_limited", "the server has too many connections: try again later", retry_after=1
            )
            return
        self._header_timer = self.loop.call_later(self.header_seconds, self._headers_late)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._header_timer, self._write_timer, self._discard_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        waiting = self.conn.their_state is h11.IDLE
        if not waiting:
            self._header_timer = _stop(self._header_timer)
        elif self._header_timer is None:
            # The first bytes of the next request, of which the head is not complete.
            self._header_timer = self.loop.call_later(self.header_seconds, self._headers_late)
        if self.conn.their_state is not h11.SEND_BODY:
            self._discard_timer = _stop(self._discard_timer)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self._discard_timer = self.loop.call_later(_DISCARD_SECONDS, self.transport.close)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_timer = _stop(self._write_timer)

    def send_400_response(self, msg: str) -> None:
        self._refuse("invalid_value", f"this is not HTTP: {msg}")

    def _headers_late(self) -> None:
        self._refuse(
            "request_timeout",
            f"the headers did not arrive within {self.header_seconds:g} s: send them faster",
        )

    def _refuse(self, code: ErrorCode, message: str, retry_after: float | None = None) -> None:
        """Answer before there is a request, and close."""
        error = ServerError(code, message, retry_after=retry_after)
        body = json.dumps({"error": error.body()}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (b"x-request-id", uuid.uuid4().hex.encode()),
        ]
        if retry_after is not None:
            headers.append((b"retry-after", str(int(retry_after)).encode()))
        status = error.answer.status
        try:
            # After a protocol error the state machine may take no more events.
            head = self.conn.send(h11.Response(status_code=status, headers=headers))
            rest = self.conn.send(h11.Data(data=body)), self.conn.send(h11.EndOfMessage())
        except h11.LocalProtocolError:
            self.transport.close()
            return
        self.transport.write(b"".join(part for part in (head, *rest) if part))
        self.transport.close()


def connection_class(
    header_seconds: float, write_seconds: float, most: int
) -> Callable[..., asyncio.Protocol]:
    """Make the class of a server's connections.

    Args:
        header_seconds: until a request's headers are complete.
        write_seconds: until a client reads on.
        most: connections at once.
    """
    return type(
        "LimitedConnection",
        (Connection,),
        {"header_seconds": header_seconds, "write_seconds": write_seconds, "most": most},
    )


def _stop(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Cancel a timer, and return None, which takes its place."""
    if timer is not None:
        timer.cancel()
    return None
