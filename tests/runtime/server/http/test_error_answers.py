"""Status, body and headers of errors."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from sd2rt.runtime.server.errors import ANSWERS, ErrorCode, ServerError
from sd2rt.runtime.server.http.error_answers import error_answer

SCOPE = {"type": "http", "path": "/v1/images/generations"}


@pytest.mark.parametrize("code", get_args(ErrorCode))
def test_every_code_has_an_answer(code: ErrorCode) -> None:
    answer = error_answer(ServerError(code, "why", param="n"), SCOPE)
    assert answer.status_code == ANSWERS[code].status
    body = json.loads(bytes(answer.body))
    assert body == {"error": {"message": "why", "type": ANSWERS[code].type, "param": "n", "code": code}}


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (1.2, "2"), (500.0, "120"), (None, None)])
def test_retry_after(seconds: float | None, header: str | None) -> None:
    answer = error_answer(ServerError("queue_full", "full", retry_after=seconds), SCOPE)
    assert answer.headers.get("retry-after") == header


def test_what_clients_should_not_repeat() -> None:
    assert error_answer(ServerError("poisoned", ""), SCOPE).headers["x-should-retry"] == "false"
    assert error_answer(ServerError("not_finite", ""), SCOPE).headers["x-should-retry"] == "false"
    assert "x-should-retry" not in error_answer(ServerError("worker_died", ""), SCOPE).headers


def test_forms_of_other_apis() -> None:
    error = ServerError("invalid_value", "why", param="n")
    sdapi = json.loads(bytes(error_answer(error, {"type": "http", "path": "/sdapi/v1/txt2img"}).body))
    assert sdapi == {"error": error.body(), "detail": "why"}
    hf = json.loads(bytes(error_answer(error, {"type": "http", "path": "/hf/demo"}).body))
    assert hf == {"error": "why", "error_type": "invalid_value", "param": "n"}
