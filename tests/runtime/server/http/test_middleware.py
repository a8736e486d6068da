"""Code around every request, where the request itself fails."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from sd2rt.runtime.server.http.config import load_config
from sd2rt.runtime.server.http.front import Front
from sd2rt.runtime.server.http.middleware import AroundRequests
from sd2rt.runtime.server.worker_client import WorkerClient
from sd2rt.runtime.server.worker_settings import WorkerSettings


def answer(app: Any, front: Front) -> list[Message]:
    """Messages that a GET of ``/x`` is answered with."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/x", "headers": []}
    asyncio.run(AroundRequests(app, front, {})(scope, receive, send))
    return sent


@pytest.fixture
def front() -> Front:
    return Front(load_config({}, {}), WorkerClient(WorkerSettings(bundles={})))


def test_a_bug(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    """Its answer has an id and shows nothing of the bug, which the log does."""

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("secret")

    start, body = answer(broken, front)
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert start["status"] == 500
    assert len(headers["x-request-id"]) == 32
    assert json.loads(body["body"])["error"]["code"] == "internal_error"
    assert b"secret" not in body["body"]
    assert "KeyError" in caplog.text
    assert 'outcome="internal_error"' in front.metrics.text().decode()


def test_a_bug_in_the_middle_of_an_answer(front: Front) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("secret")

    (start,) = answer(broken, front)
    assert start["status"] == 200


def test_a_request_that_is_given_up_at_the_end(front: Front) -> None:
    async def cancelled(scope: Scope, receive: Receive, send: Send) -> None:
        raise asyncio.CancelledError

    start, body = answer(cancelled, front)
    assert start["status"] == 503
    assert json.loads(body["body"])["error"]["code"] == "draining"
