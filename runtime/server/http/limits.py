"""Limits of request bodies by size, number and time, and of requests by caller."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict

from starlette.types import Message, Receive

from sd2rt.runtime.server.errors import ServerError

_CALLERS = 10_000
"""Callers whose rate is remembered."""


class BodyBudget:
    """Bytes of all request bodies that are held at once.

    Args:
        limit: in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    def take(self, size: int) -> None:
        """Count bytes that arrived.

        Raises:
            ServerError: ``rate_limited``; the bytes are not counted.
        """
        if self._held + size > self._limit:
            raise ServerError(
                "rate_limited",
                "the server holds too many large uploads at the moment: try again later",
                retry_after=2,
            )
        self._held += size

    def give_back(self, size: int) -> None:
        """Count bytes that were released."""
        self._held -= size


class BoundedBody:
    """The ASGI ``receive`` of one request, which stops at a size and at a time.

    Whatever reads the body (JSON, forms, streams) reads it through this, so a length that the client declares,
    chunks without one, and parts of a form are all counted alike.

    Args:
        receive: of the server.
        declared: value of ``Content-Length``, or None.
        limit: in bytes.
        seconds: time for the whole body.
        budget: shared by all requests.
    """

    def __init__(
        self, receive: Receive, declared: int | None, limit: int, seconds: float, budget: BodyBudget
    ) -> None:
        self._receive = receive
        self._declared = declared
        self._limit = limit
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._budget = budget
        self._size = 0
        self._complete = False

    async def __call__(self) -> Message:
        """Return the next message.

        Raises:
            ServerError: ``body_too_large``, ``request_timeout`` or ``rate_limited``.
        """
        if self._complete:
            return await self._receive()
        if self._declared is not None and self._declared > self._limit:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._until - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise ServerError(
                "request_timeout", f"the body did not arrive within {self._seconds:g} s: send it faster"
            ) from None
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            if self._size + size > self._limit:
                raise self._too_large()
            self._budget.take(size)
            self._size += size
            self._complete = not message.get("more_body", False)
        return message

    def release(self) -> None:
        """Give the body's bytes back to the budget, at the end of the request."""
        self._budget.give_back(self._size)
        self._size = 0

    def _too_large(self) -> ServerError:
        return ServerError(
            "body_too_large",
            f"the body is larger than {self._limit} bytes: send smaller images, or raise the server's --max-body-mb",
        )


class RateLimit:
    """Requests by caller, in a token bucket each that holds a minute's requests.

    Args:
        per_minute: requests; None for no limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> None:
        """Count a request of a caller.

        Raises:
            ServerError: ``rate_limited``.
        """
        if self._per_minute is None:
            return
        size = max(self._per_minute, 1.0)
        now = time.monotonic()
        tokens, since = self._buckets.pop(caller, (size, now))
        tokens = min(size, tokens + (now - since) * self._per_minute / 60)
        self._buckets[caller] = (tokens - 1 if tokens >= 1 else tokens, now)
        if len(self._buckets) > _CALLERS:
            self._buckets.popitem(last=False)
        if tokens < 1:
            raise ServerError(
                "rate_limited",
                f"more than {self._per_minute:g} requests a minute: wait",
                retry_after=(1 - tokens) * 60 / self._per_minute,
            )
