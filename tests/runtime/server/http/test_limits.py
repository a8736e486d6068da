"""Bodies and rates."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from starlette.types import Message, Receive

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.http.limits import BodyBudget, BoundedBody, RateLimit


def receiving(*chunks: bytes) -> Receive:
    messages: Iterator[Message] = iter(
        {"type": "http.request", "body": chunk, "more_body": index < len(chunks)}
        for index, chunk in enumerate(chunks, 1)
    )

    async def receive() -> Message:
        return next(messages)

    return receive


async def read(body: BoundedBody) -> bytes:
    chunks: list[bytes] = []
    while True:
        message = await body()
        chunks.append(message["body"])
        if not message["more_body"]:
            return b"".join(chunks)


@pytest.mark.parametrize("declared", [None, 10])
def test_a_body_at_the_limit(declared: int | None) -> None:
    body = BoundedBody(receiving(b"12345", b"67890"), declared, 10, 5, BodyBudget(10))
    assert asyncio.run(read(body)) == b"1234567890"


@pytest.mark.parametrize(("declared", "chunks"), [(11, [b""]), (None, [b"12345", b"678901"])])
def test_a_body_over_the_limit(declared: int | None, chunks: list[bytes]) -> None:
    body = BoundedBody(receiving(*chunks), declared, 10, 5, BodyBudget(100))
    with pytest.raises(ServerError) as error:
        asyncio.run(read(body))
    assert error.value.code == "body_too_large"


def test_a_slow_body() -> None:
    async def never() -> Message:
        await asyncio.sleep(60)
        raise AssertionError

    with pytest.raises(ServerError) as error:
        asyncio.run(read(BoundedBody(never, None, 10, 0.01, BodyBudget(10))))
    assert error.value.code == "request_timeout"


def test_all_bodies_together() -> None:
    budget = BodyBudget(15)
    first = BoundedBody(receiving(b"1234567890"), None, 10, 5, budget)
    asyncio.run(read(first))
    with pytest.raises(ServerError) as error:
        asyncio.run(read(BoundedBody(receiving(b"123456"), None, 10, 5, budget)))
    assert error.value.code == "rate_limited"
    first.release()
    assert asyncio.run(read(BoundedBody(receiving(b"123456"), None, 10, 5, budget))) == b"123456"


def test_rates() -> None:
    rates = RateLimit(2)
    for _ in range(2):
        rates.take("a")
    with pytest.raises(ServerError) as error:
        rates.take("a")
    assert error.value.code == "rate_limited"
    assert error.value.retry_after is not None
    assert 1 <= error.value.retry_after <= 30
    rates.take("b")
    unlimited = RateLimit(None)
    for _ in range(100):
        unlimited.take("a")
