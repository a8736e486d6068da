"""Answers to requests that are refused or have failed."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from sd2rt.runtime.server.errors import ErrorCode, ServerError

_LOG = logging.getLogger(__name__)
_STATE = "sd2rt"
SDAPI, HF = "/sdapi/", "/hf/"
"""Paths with errors of their own form: those of AUTOMATIC1111's API and of Hugging Face's."""
_HTTP_CODES: dict[int, ErrorCode] = {
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
}
INTERNAL = ServerError(
    "internal_error", "the server failed to answer: its log has the reason, by x-request-id"
)


def notes(scope: Scope) -> dict[str, object]:
    """Return what is noted about a request for its log line and metrics: endpoint, model, code and more."""
    found = scope.setdefault(_STATE, {})
    assert isinstance(found, dict)
    return found


def error_headers(error: ServerError, *, basic: bool = False) -> dict[str, str]:
    """Headers of an error: ``Retry-After`` in whole seconds of 1 to 120, and ``x-should-retry``."""
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    if error.answer.retry is not None:
        headers["x-should-retry"] = "true" if error.answer.retry else "false"
    if error.code == "invalid_api_key":
        headers["www-authenticate"] = 'Bearer, Basic realm="sd2rt"' if basic else "Bearer"
    if error.code == "draining":
        headers["connection"] = "close"
    return headers


def error_answer(error: ServerError, scope: Scope) -> Response:
    """Make the answer to an error, in the form that the clients of a request's path read."""
    path: str = scope["path"]
    headers = error_headers(error, basic=path.startswith(SDAPI))
    return JSONResponse(_error_body(error, path), error.answer.status, headers=headers)


def _error_body(error: ServerError, path: str) -> Mapping[str, Any]:
    if path.startswith(HF):
        return {"error": error.message, "error_type": error.code, "param": error.param}
    if path.startswith(SDAPI):
        return {"error": error.body(), "detail": error.message}
    return {"error": error.body()}


async def on_server_error(request: Request, error: Exception) -> Response:
    """Answer a :class:`ServerError` of a route."""
    assert isinstance(error, ServerError)
    notes(request.scope)["code"] = error.code
    return error_answer(error, request.scope)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer an error of the framework's: an unknown path, a method that the path does not have."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    code = _HTTP_CODES.get(status, "invalid_value" if status < 500 else "internal_error")
    messages = {
        "not_found": "there is nothing at this path: GET /openapi.json lists what there is",
        "method_not_allowed": f"this path does not take {request.method[:20]}: see the header 'allow'",
    }
    notes(request.scope)["code"] = code
    answer = error_answer(ServerError(code, messages.get(code, error.detail)), request.scope)
    answer.headers.update(error.headers or {})
    return answer


def bug_answer(scope: Scope, error: Exception) -> Response:
    """Log an unexpected exception, and make the answer to its request."""
    _LOG.error("a bug: %s", type(error).__name__, exc_info=error)
    notes(scope)["code"] = INTERNAL.code
    return error_answer(INTERNAL, scope)
