"""Wait for work as long as its client is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.types import Receive

_Value = TypeVar("_Value")
_KEEP_ALIVE_SECONDS = 15.0


class ClientLeftError(Exception):
    """The client has closed its connection; nobody reads an answer."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, _Value]) -> _Value:
    """Await work, and cancel it if the client leaves.

    Raises:
        ClientLeftError: the client has left; the work has ended.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeftError
        return task.result()
    finally:
        for each in (leaving, task):
            each.cancel()
        await asyncio.wait((leaving, task))
        if not task.cancelled():
            # Retrieved, so that it is not reported as lost.
            task.exception()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Relay(AsyncIterator[_Value | None]):
    """Items of a generator that one task reads; in a long silence, None.

    Args:
        source: of items. Its task closes it, at its end or at :meth:`aclose`.
    """

    def __init__(self, source: AsyncGenerator[_Value]) -> None:
        self._items: asyncio.Queue[_Value] = asyncio.Queue(1)
        self._ready = asyncio.Event()
        self._task = asyncio.ensure_future(self._read(source))
        self._task.add_done_callback(lambda task: self._ready.set())

    async def _read(self, source: AsyncGenerator[_Value]) -> None:
        async with aclosing(source):
            async for item in source:
                await self._items.put(item)
                self._ready.set()

    async def first(self, receive: Receive, seconds: float) -> None:
        """Wait until an item is there or the time is over, so that a refusal can still be an answer's status.

        Raises:
            ClientLeftError: the client has left.
            ServerError: the source's own errors.
        """
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await while_connected(receive, self._wait())
            if self._items.empty() and self._task.done():
                self._task.result()
        except BaseException:
            await self.aclose()
            raise

    async def _wait(self) -> None:
        await self._ready.wait()

    async def __anext__(self) -> _Value | None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_KEEP_ALIVE_SECONDS):
                await self._ready.wait()
        if not self._items.empty():
            item = self._items.get_nowait()
            if self._items.empty() and not self._task.done():
                self._ready.clear()
            return item
        if self._task.done():
            self._task.result()
            raise StopAsyncIteration
        return None

    async def aclose(self) -> None:
        """Close the source, and wait until that is done."""
        self._task.cancel()
        await asyncio.wait((self._task,))
        if not self._task.cancelled():
            # Retrieved, so that it is not reported as lost.
            self._task.exception()
