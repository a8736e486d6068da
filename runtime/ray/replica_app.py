"""The server's ASGI application behind Ray's proxies."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sd2rt.runtime.server.http.front import Front

_RESTART_SECONDS = 30.0
_POLL_SECONDS = 0.05
_LEAVE_SECONDS = 10.0
_DISCONNECT: Message = {"type": "http.disconnect"}


class ReplicaApp:
    """Adapts requests of Ray's proxies to the server's application, which is the same as under `sd2rt serve`.

    - Ray cancels the call of a client that leaves; the application sees a closed connection, as it does elsewhere.
    - While a worker restarts, requests for work wait for it: a replica that refused at once would have the shortest
      queue, and Ray would send it everything.
    - At the replica's end, Ray waits for open requests only; jobs are waited for here.

    Args:
        app: the server's application.
        front: its shared state.
    """

    def __init__(self, app: ASGIApp, front: Front) -> None:
        self._app, self._front = app, front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, self._draining(receive), send)
        elif scope["type"] == "http":
            await self._answer(_adapted(scope), receive, send)
        else:
            await self._app(scope, receive, send)

    def _draining(self, receive: Receive) -> Receive:
        async def received() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self._front.drain()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._front.config.shutdown_timeout):
                        await self._front.idle()
            return message

        return received

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await self._worker_is_back()
        left = asyncio.Event()

        async def sent(message: Message) -> None:
            if left.is_set():
                # As uvicorn's own connections do.
                raise ConnectionResetError("the client has left")
            if message["type"] == "http.response.start":
                # The proxy adds its own, which is the same: the application takes it from the request.
                headers = [pair for pair in message["headers"] if pair[0].lower() != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        task = asyncio.ensure_future(self._app(scope, _until(left, receive), sent))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            left.set()
            await asyncio.wait((task,), timeout=_LEAVE_SECONDS)
            task.cancel()
            await asyncio.wait((task,))
            if not task.cancelled():
                # Retrieved, so that it is not reported as lost.
                task.exception()
            raise

    async def _worker_is_back(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_RESTART_SECONDS):
                while self._front.readiness() == "down":
                    await asyncio.sleep(_POLL_SECONDS)


def _adapted(scope: Scope) -> Scope:
    """Return a scope whose path is below the application's prefix, and whose end of a connection can be received."""
    root, path = scope.get("root_path", ""), scope["path"]
    if root and path.startswith(root):
        path = path[len(root) :] or "/"
    return {**scope, "path": path, "root_path": "", "asgi": {**scope.get("asgi", {}), "spec_version": "2.3"}}


def _until(left: asyncio.Event, receive: Receive) -> Receive:
    async def received() -> Message:
        message, leaving = asyncio.ensure_future(receive()), asyncio.ensure_future(left.wait())
        try:
            await asyncio.wait((message, leaving), return_when=asyncio.FIRST_COMPLETED)
            return message.result() if message.done() else _DISCONNECT
        finally:
            message.cancel()
            leaving.cancel()

    return received
