"""Clients that send too much, too slowly, or nonsense; and normal ones beside them."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.serving.server_process import Client, Server

from .conftest import MAX_BODY_MB

LIMIT = MAX_BODY_MB << 20
POST = b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def connect(server: Server) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=30)


def answer_to(server: Server, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes, and read until the server closes."""
    with connect(server) as connection:
        connection.sendall(data)
        return parsed(everything(connection))


def everything(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def one_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read an answer on a connection that stays open."""
    data = b""
    while True:
        part = connection.recv(1 << 16)
        data += part
        if b"\r\n\r\n" in data:
            status, headers, body = parsed(data)
            if len(body) >= int(headers["content-length"]):
                return status, headers, body
        assert part, data


def parsed(data: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, body


def test_a_length_over_the_limit(demo_server: Server) -> None:
    """The answer comes before the body."""
    with connect(demo_server) as connection:
        connection.sendall(POST + f"content-length: {LIMIT + 1}\r\n\r\n".encode())
        status, headers, body = one_answer(connection)
    assert status == 413
    assert json.loads(body)["error"]["code"] == "body_too_large"
    assert headers["x-request-id"]


def test_chunks_over_the_limit(demo_server: Server) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(LIMIT // 65_536 + 2):
            yield b" " * 65_536

    with httpx.Client(base_url=demo_server.url) as client:
        answer = client.post(
            "/v1/images/generations", content=chunks(), headers={"content-type": "application/json"}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_forms_over_the_limit(demo_server: Server) -> None:
    with httpx.Client(base_url=demo_server.url) as client:
        answer = client.post(
            "/v1/images/edits",
            data={"prompt": "a"},
            files={"image": ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(LIMIT))},
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_base64_over_the_limit(demo_server: Server) -> None:
    with httpx.Client(base_url=demo_server.url) as client:
        answer = client.post("/v1/jobs", json={"prompt": "a", "image": "A" * LIMIT})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_a_body_at_the_limit(demo_server: Server) -> None:
    fields = json.dumps({"prompt": "a", "num_inference_steps": 1, "seed": 1})
    with httpx.Client(base_url=demo_server.url, timeout=60) as client:
        answer = client.post(
            "/v1/images/generations",
            content=fields + " " * (LIMIT - len(fields)),
            headers={"content-type": "application/json"},
        )
        assert answer.status_code == 200


def test_an_image_of_too_many_pixels(demo_server: Server) -> None:
    """A file of some bytes that would be gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with httpx.Client(base_url=demo_server.url, timeout=60) as client:
        answer = client.post("/v1/images/edits", data={"prompt": "a"}, files={"image": ("a.png", bomb)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_pixels")


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET /nothing HTTP/1.1\r\nhost: x\r\n" + b"a: " + b"x" * 100_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["empty", "nonsense", "version", "no host", "negative", "smuggled", "long", "tls"],
)
def test_no_http(demo_server: Server, data: bytes) -> None:
    with connect(demo_server) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        received = everything(connection)
    if received:
        status, headers, body = parsed(received)
        assert 400 <= status < 500
        assert json.loads(body)["error"]["message"]
        assert headers["x-request-id"]
    assert demo_server.get("/livez")[0] == 200


@pytest.fixture(scope="module")
def hasty_server(demo_folders: dict[str, Path]) -> Iterator[Server]:
    """A server with short timeouts."""
    with Server(
        demo_folders["demo"],
        *("--header-timeout", "1", "--body-timeout", "1", "--write-timeout", "1", "--max-connections", "300"),
    ) as server:
        yield server


@pytest.mark.parametrize("sent", [b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: "])
def test_slow_headers(hasty_server: Server, sent: bytes) -> None:
    status, headers, body = answer_to(hasty_server, sent)
    assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
    assert headers["connection"] == "close"


def test_slow_headers_of_a_second_request(hasty_server: Server) -> None:
    with connect(hasty_server) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert one_answer(connection)[0] == 200
        connection.sendall(b"GET /liv")
        assert parsed(everything(connection))[0] == 408


def test_dripping_headers(hasty_server: Server) -> None:
    """A byte now and then does not extend the time."""
    with connect(hasty_server) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nx: ")
        connection.settimeout(0.2)
        received = b""
        until = time.monotonic() + 20
        while time.monotonic() < until and not received:
            with contextlib.suppress(OSError):
                connection.sendall(b"a")
            with contextlib.suppress(TimeoutError):
                received = connection.recv(1 << 16)
    assert parsed(received)[0] == 408


@pytest.mark.parametrize(
    "head", [b"content-length: 100\r\n\r\n{", b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n"]
)
def test_slow_bodies(hasty_server: Server, head: bytes) -> None:
    with connect(hasty_server) as connection:
        connection.sendall(POST + head)
        status, _, body = one_answer(connection)
    assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")


def test_readers_that_stop(hasty_server: Server) -> None:
    """Answers that nobody reads are given up, and their connection closed."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((hasty_server.host, hasty_server.port))
    with connection:
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 200)
        hasty_server.wait_until(lambda: established(hasty_server, connection.getsockname()[1]) == 1)
        hasty_server.wait_until(lambda: established(hasty_server, connection.getsockname()[1]) == 0)


def established(server: Server, port: int) -> int:
    """Number of the server's connections from a port of this machine."""
    wanted = f"0100007F:{server.port:04X} 0100007F:{port:04X} 01"
    return sum(wanted in line for line in Path("/proc/net/tcp").read_text().splitlines())


def test_two_hundred_slow_connections(hasty_server: Server, demo_server: Server) -> None:
    """They take no place of normal requests, and are gone after their time."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(hasty_server)) for _ in range(200)]
        for connection in slow:
            connection.sendall(b"POST /v1/images/generations HTTP/1.1\r\nhost:")
        client = Client(hasty_server)
        status, _ = client.generate({"prompt": "a", "num_inference_steps": 1, "seed": 1})
        assert status == 200
        client.close()
        for connection in slow:
            assert parsed(everything(connection))[0] == 408


def test_too_many_connections(hasty_server: Server) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(hasty_server)) for _ in range(310)]
        status, headers, body = parsed(everything(connections[-1]))
    assert (status, json.loads(body)["error"]["code"]) == (429, "rate_limited")
    assert headers["retry-after"] == "1"
    hasty_server.wait_status(200)
