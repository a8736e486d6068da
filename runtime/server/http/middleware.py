"""Code around every request: its id, key and limits before, its log line and metrics after."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.http.api.health_routes import PROBES
from sd2rt.runtime.server.http.error_answers import SDAPI, bug_answer, error_answer, notes
from sd2rt.runtime.server.http.front import Front
from sd2rt.runtime.server.http.limits import BoundedBody
from sd2rt.runtime.server.http.page.routes import PAGE_PATHS
from sd2rt.runtime.server.http.streaming import ClientLeftError
from sd2rt.runtime.server.logs import request_id

_LOG = logging.getLogger(__name__)
_GIVEN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_QUIET = PROBES | {"/metrics"}


class AroundRequests:
    """Outermost part of the application.

    Args:
        app: the application inside.
        front: shared state.
        endpoints: label of the metrics, by the first parts of a path.
    """

    def __init__(self, app: ASGIApp, front: Front, endpoints: Mapping[str, str]) -> None:
        self._app = app
        self._front = front
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        identity = given if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
        token = request_id.set(identity)
        began = time.monotonic()
        status = 0

        async def with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["x-request-id"] = identity
                answer["x-content-type-options"] = "nosniff"
                if self._front.draining or ("transfer-encoding" in headers and "content-length" in headers):
                    answer["connection"] = "close"
            await send(message)

        length = headers.get("content-length", "")
        body = BoundedBody(
            receive,
            int(length) if length.isdecimal() else None,
            self._front.config.max_body_bytes,
            self._front.config.body_timeout,
            self._front.bodies,
        )
        try:
            await self._answer(scope, headers, body, with_id)
        except ClientLeftError:
            notes(scope)["code"] = "cancelled"
        except Exception as error:
            # Here, and not by the framework's handler outside, so that this answer has an id too.
            answer = bug_answer(scope, error)
            if status == 0:
                await answer(scope, receive, with_id)
        except asyncio.CancelledError:
            # The shutdown timeout is over. Swallowed: nothing else in this task waits for the request.
            notes(scope)["code"] = "draining"
            if status == 0:
                shut_down = ServerError("draining", "the server was shut down: ask again")
                await error_answer(shut_down, scope)(scope, receive, with_id)
        finally:
            body.release()
            self._count(scope, status, time.monotonic() - began)
            request_id.reset(token)

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        try:
            self._check(scope, headers)
        except ServerError as error:
            notes(scope)["code"] = error.code
            await error_answer(error, scope)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Check port, key and rate.

        Raises:
            ServerError: the request is refused.
        """
        path, front = scope["path"], self._front
        if scope["http_version"] not in ("1.0", "1.1"):
            raise ServerError("invalid_value", "this is neither HTTP/1.1 nor HTTP/1.0: use one of them")
        if "transfer-encoding" in headers and "content-length" in headers:
            # A proxy in front may read the other one, and see another request behind the body.
            raise ServerError(
                "invalid_value", "the body has a length and chunks: send one of the two headers"
            )
        if front.metrics_port is not None:
            at_metrics = (scope.get("server") or (None, None))[1] == front.metrics_port
            if (path == "/metrics") != at_metrics and not (at_metrics and path in PROBES):
                raise ServerError("not_found", "there is nothing at this path on this port")
            if at_metrics:
                return
        if path in PROBES or path in PAGE_PATHS:
            return
        caller = front.keyring.caller(headers.get("authorization"), basic=path.startswith(SDAPI))
        notes(scope)["caller"] = caller
        client = scope.get("client")
        front.rates.take(caller or (client[0] if client else ""))

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        noted, path = notes(scope), scope["path"]
        code = noted.get("code") or ("ok" if status < 400 else "error")
        if path not in _QUIET:
            endpoint = self._endpoint(path)
            model = noted.get("model") or ""
            self._front.metrics.requests.labels(endpoint, str(model), str(code)).inc()
            self._front.metrics.request_seconds.labels(endpoint).observe(seconds)
        _LOG.log(
            logging.DEBUG if path in _QUIET else logging.INFO,
            "request",
            extra={
                "fields": {
                    "method": scope["method"],
                    "path": path[:200],
                    "status": status,
                    "outcome": code,
                    "ms": round(seconds * 1000, 1),
                    **{name: noted[name] for name in ("caller", "model", "generation") if noted.get(name)},
                }
            },
        )

    def _endpoint(self, path: str) -> str:
        return next((label for start, label in self._endpoints.items() if path.startswith(start)), "other")
