"""Frames over a socket pair: what arrives is what was sent, and nothing else is taken."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sd2rt.runtime.server.worker import wire
from sd2rt.runtime.server.worker.wire import Connection, Frame, WireError, encode

FRAMES = [
    Frame({"a": 1, "b": ["é", None, 1.5]}),
    Frame({}, (b"", b"\0" * 100_000, b"sd2w")),
    Frame({"text": "x" * 300_000}, tuple(bytes([number]) * number for number in range(64))),
]


def start(header: int, count: int, total: int, magic: bytes = b"sd2w") -> bytes:
    return struct.pack(">4sIII", magic, header, count, total)


def with_pair(act: Callable[[Connection, socket.socket], Awaitable[Any]]) -> Any:
    """Run with a connection, and the other end of its pair as a plain socket."""

    async def run() -> Any:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.setblocking(False)
            connection = await Connection.open(ours)
            try:
                async with asyncio.timeout(60):
                    return await act(connection, theirs)
            finally:
                connection.abort()

    return asyncio.run(run())


def test_frames_arrive_as_they_were_sent() -> None:
    async def both(connection: Connection, end: socket.socket) -> list[Frame | None]:
        other = await Connection.open(end.dup())

        async def send() -> None:
            for frame in FRAMES:
                await connection.send(*frame)
            connection.post({"last": True})
            await connection.flushed()

        sending = asyncio.create_task(send())
        received = [await other.receive() for _ in range(len(FRAMES) + 1)]
        await sending
        other.abort()
        return received

    assert with_pair(both) == [*FRAMES, Frame({"last": True})]


def test_many_senders_do_not_mix() -> None:
    async def both(connection: Connection, end: socket.socket) -> None:
        other = await Connection.open(end.dup())
        tasks = [
            asyncio.create_task(connection.send({"number": number}, (bytes([number]) * 50_000,)))
            for number in range(40)
        ]
        # Senders that are cancelled have sent all of a frame, or none.
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        seen = set[int]()
        while len(seen) < sum(number % 3 != 0 for number in range(40)):
            frame = await other.receive()
            assert frame is not None
            number = frame.header["number"]
            assert frame.attachments == (bytes([number]) * 50_000,)
            if number % 3:
                seen.add(number)
        await asyncio.gather(*tasks, return_exceptions=True)
        other.abort()

    with_pair(both)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        bytes(1000),
        start(wire.MAX_HEADER_BYTES + 1, 0, 0),
        start(2, wire.MAX_ATTACHMENTS + 1, 0),
        start(2, 1, wire.MAX_FRAME_BYTES + 1),
        start(2, 1, 5) + struct.pack(">I", 6) + b"{}" + b"x" * 6,
        start(2, 0, 0) + b"{]",
        start(2, 0, 0) + b"[]",
        start(4, 0, 0) + b"\xff\xfe\xfd\xfc",
        start(200_000, 0, 0) + b"[" * 200_000,
    ],
)
def test_garbage_is_refused(garbage: bytes) -> None:
    async def receive(connection: Connection, end: socket.socket) -> None:
        await asyncio.get_running_loop().sock_sendall(end, garbage)
        with pytest.raises(WireError):
            await connection.receive()

    with_pair(receive)


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 19, 25, 40])
def test_the_end_of_the_other_side_is_the_end(cut: int) -> None:
    whole = b"".join(encode({"number": 1}, (b"x" * 50,)))

    async def receive(connection: Connection, end: socket.socket) -> Frame | None:
        await asyncio.get_running_loop().sock_sendall(end, whole[:cut])
        end.shutdown(socket.SHUT_RDWR)
        return await connection.receive()

    assert with_pair(receive) is None


def test_messages_beyond_the_limits_are_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_FRAME_BYTES", 1000)
    monkeypatch.setattr(wire, "MAX_HEADER_BYTES", 1000)
    for header, attachments in (({}, [b"x" * 1001]), ({}, [b""] * 65), ({"a": "x" * 1001}, [])):
        with pytest.raises(WireError, match="too large"):
            encode(header, attachments)
    with pytest.raises(ValueError, match="JSON"):
        encode({"a": float("nan")})
