"""The table of codes, and errors on the wire."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from sd2rt.runtime.server.errors import ANSWERS, ErrorCode, ServerError


def test_every_code_has_an_answer() -> None:
    assert set(ANSWERS) == set(get_args(ErrorCode))
    assert {code for code, answer in ANSWERS.items() if answer.retry is False} == {
        "not_finite",
        "poisoned",
        "deadline_exceeded",
    }


def test_errors_survive_the_wire() -> None:
    error = ServerError("queue_full", "full", param="n", retry_after=3)
    again = ServerError.from_json(json.loads(json.dumps(error.to_json())))
    assert (again.code, again.message, again.param, again.retry_after) == ("queue_full", "full", "n", 3)
    assert again.body() == {"message": "full", "type": "rate_limit_error", "param": "n", "code": "queue_full"}


@pytest.mark.parametrize("fields", [{}, {"code": []}, {"code": "other", "param": 3, "retry_after": "x"}])
def test_an_unknown_error_is_internal(fields: dict[str, Any]) -> None:
    error = ServerError.from_json(fields)
    assert (error.code, error.param, error.retry_after) == ("internal_error", None, None)


@pytest.mark.parametrize(("seconds", "sent"), [(0.0, 1.0), (1e9, 120.0), (5.0, 5.0)])
def test_retry_after_is_one_to_120_seconds(seconds: float, sent: float) -> None:
    assert ServerError("queue_full", "", retry_after=seconds).retry_after == sent
