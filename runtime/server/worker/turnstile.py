"""A bounded number of tasks at a time, the most urgent first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from heapq import heappop, heappush


class Turnstile:
    """Lets tasks through by urgency, then in the order in which they came; use it from one event loop.

    Args:
        width: tasks that are inside at once.
    """

    def __init__(self, width: int) -> None:
        self._free = width
        self._number = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def pass_through(self, urgency: int) -> AsyncIterator[None]:
        """Wait for a place, and have it within an ``async with`` block.

        Args:
            urgency: smaller passes first.
        """
        if self._free:
            self._free -= 1
        else:
            passing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heappush(self._waiting, (urgency, self._number, passing))
            self._number += 1
            try:
                await passing
            except asyncio.CancelledError:
                if passing.done() and not passing.cancelled():
                    self._leave()
                raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        while self._waiting:
            _, _, passing = heappop(self._waiting)
            if not passing.done():
                passing.set_result(None)
                return
        self._free += 1
