"""The adapter between Ray's proxies and the application, with calls as Ray makes them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Scope

from sd2rt.runtime.ray.replica_app import ReplicaApp
from sd2rt.runtime.server.http.config import ServerConfig
from sd2rt.runtime.server.http.front import Front
from sd2rt.runtime.server.http.streaming import while_connected
from sd2rt.runtime.server.worker_client import WorkerClient
from sd2rt.runtime.server.worker_settings import WorkerSettings


class Called:
    """An application whose requests are recorded, and the messages that it sends."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.begun = asyncio.Event()
        self.sent: list[Message] = []
        front = Front(ServerConfig(), WorkerClient(WorkerSettings(bundles={})))
        routes = [
            Route("/echo", self.echo),
            Route("/work", self.work),
            Route("/stream", self.stream),
        ]
        self.app = ReplicaApp(Starlette(routes=routes), front)

    async def echo(self, request: Request) -> Response:
        answer = JSONResponse({"path": request.url.path})
        answer.headers["x-request-id"] = request.headers["x-request-id"]
        return answer

    async def work(self, request: Request) -> Response:
        try:
            await while_connected(request.receive, self._forever())
        finally:
            self.ended.append("work")
        return Response()

    async def stream(self, request: Request) -> Response:
        async def lines() -> Any:
            try:
                yield b": begun\n"
                await self._forever()
            finally:
                self.ended.append("stream")

        return StreamingResponse(lines())

    async def _forever(self) -> None:
        self.begun.set()
        await asyncio.Event().wait()

    async def __call__(self, path: str, root_path: str = "", method: str = "GET") -> None:
        scope: Scope = {
            "type": "http",
            "method": method,
            "path": path,
            "root_path": root_path,
            "query_string": b"",
            "headers": [(b"x-request-id", b"mine")],
            # As uvicorn says that failures of send() tell of clients that left: Ray's send() never fails.
            "asgi": {"version": "3.0", "spec_version": "2.4"},
        }
        await self.app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        # Ray's proxy has sent the body, and says nothing of the client's end before the call is cancelled.
        if not self.begun.is_set():
            self.begun.set()
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def _send(self, message: Message) -> None:
        self.sent.append(message)


@pytest.mark.parametrize(("path", "root"), [("/echo", ""), ("/pictures/echo", "/pictures")])
def test_paths_are_below_the_application_s_prefix(path: str, root: str) -> None:
    async def call() -> Called:
        called = Called()
        await called(path, root)
        return called

    start, body = asyncio.run(call()).sent
    assert start["status"] == 200
    assert body["body"] == b'{"path":"/echo"}'


def test_the_proxy_s_request_id_is_the_only_one() -> None:
    async def call() -> Called:
        called = Called()
        await called("/echo")
        return called

    start = asyncio.run(call()).sent[0]
    assert b"x-request-id" not in {name for name, _ in start["headers"]}
    assert b"content-type" in {name for name, _ in start["headers"]}


@pytest.mark.parametrize("path", ["/work", "/stream"])
def test_a_cancelled_call_is_a_client_that_left(path: str) -> None:
    async def call() -> Called:
        called = Called()
        task = asyncio.create_task(called(path))
        await called.begun.wait()
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return called

    called = asyncio.run(call())
    assert called.ended == [path.removeprefix("/")]
