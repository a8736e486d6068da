"""The error of a request to the server, and the table of its codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

ErrorCode = Literal[
    "invalid_json",
    "invalid_value",
    "size_not_supported",
    "task_not_supported",
    "invalid_image",
    "content_policy_violation",
    "not_supported",
    "invalid_api_key",
    "model_not_found",
    "not_found",
    "method_not_allowed",
    "request_timeout",
    "idempotency_conflict",
    "body_too_large",
    "too_many_pixels",
    "unsupported_media_type",
    "queue_full",
    "rate_limited",
    "deadline_unreachable",
    "internal_error",
    "not_finite",
    "poisoned",
    "worker_died",
    "out_of_memory",
    "starting",
    "draining",
    "worker_down",
    "deadline_exceeded",
]

_INVALID, _KEY, _LOAD, _SERVER = (
    "invalid_request_error",
    "authentication_error",
    "rate_limit_error",
    "server_error",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """HTTP status and error type of a code."""

    status: int
    type: str
    retry: bool | None = None
    """Value of the header ``x-should-retry``; None to leave the decision to the client."""


ANSWERS: dict[ErrorCode, Answer] = {
    "invalid_json": Answer(400, _INVALID),
    "invalid_value": Answer(400, _INVALID),
    "size_not_supported": Answer(400, _INVALID),
    "task_not_supported": Answer(400, _INVALID),
    "invalid_image": Answer(400, _INVALID),
    "content_policy_violation": Answer(400, _INVALID),
    "not_supported": Answer(422, _INVALID),
    "invalid_api_key": Answer(401, _KEY),
    "model_not_found": Answer(404, _INVALID),
    "not_found": Answer(404, _INVALID),
    "method_not_allowed": Answer(405, _INVALID),
    "request_timeout": Answer(408, _INVALID),
    "idempotency_conflict": Answer(409, _INVALID),
    "body_too_large": Answer(413, _INVALID),
    "too_many_pixels": Answer(413, _INVALID),
    "unsupported_media_type": Answer(415, _INVALID),
    "queue_full": Answer(429, _LOAD),
    "rate_limited": Answer(429, _LOAD),
    "deadline_unreachable": Answer(429, _LOAD),
    "internal_error": Answer(500, _SERVER),
    "not_finite": Answer(500, _SERVER, retry=False),
    "poisoned": Answer(500, _SERVER, retry=False),
    "worker_died": Answer(500, _SERVER),
    "out_of_memory": Answer(500, _SERVER),
    "starting": Answer(503, _SERVER),
    "draining": Answer(503, _SERVER),
    "worker_down": Answer(503, _SERVER),
    "deadline_exceeded": Answer(504, _SERVER, retry=False),
}

LONGEST_RETRY = 120
"""Seconds of ``Retry-After`` above which OpenAI's client gives up."""


class ServerError(Exception):
    """A request that is refused or has failed.

    Args:
        code: key of :data:`ANSWERS`.
        message: the problem, the value and the remedy, in one line.
        param: field of the request that is to blame.
        retry_after: seconds until a repeated request may succeed; brought into 1 to 120.
    """

    def __init__(
        self, code: ErrorCode, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message
        self.param = param
        self.retry_after = None if retry_after is None else min(max(retry_after, 1.0), float(LONGEST_RETRY))

    @property
    def answer(self) -> Answer:
        """Status and type."""
        return ANSWERS[self.code]

    def body(self) -> dict[str, str | None]:
        """Value of ``error`` in an answer's body."""
        return {
            "message": self.message,
            "type": self.answer.type,
            "param": self.param,
            "code": self.code,
        }

    def to_json(self) -> dict[str, Any]:
        """Fields for the wire between worker and front."""
        return {
            "code": self.code,
            "message": self.message,
            "param": self.param,
            "retry_after": self.retry_after,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ServerError:
        """Make an error from the result of :meth:`to_json`; an unknown code becomes ``internal_error``."""
        code, param, after = fields.get("code"), fields.get("param"), fields.get("retry_after")
        return cls(
            code if isinstance(code, str) and code in ANSWERS else "internal_error",
            str(fields.get("message", "the worker sent no message")),
            param=param if isinstance(param, str) else None,
            retry_after=after if isinstance(after, int | float) else None,
        )
