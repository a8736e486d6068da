"""Exceptions of the runtime as errors of a request."""

from __future__ import annotations

import asyncio

from sd2rt.engines.errors import (
    EngineError,
    NotFiniteError,
    OutOfMemoryError,
    RequestError,
    UnsafeContentError,
)
from sd2rt.runtime.images.read import TooManyPixelsError
from sd2rt.runtime.request.request import Request
from sd2rt.runtime.scheduling.admission import DeadlineUnreachableError, QueueFullError
from sd2rt.runtime.server.errors import ServerError

_ALIASES = {"mask_image": "mask", "width": "size", "height": "size"}
"""Names of request fields on the wire, where they differ."""


def server_error(error: BaseException) -> ServerError:
    """Convert an exception of a generation; one that is not known becomes ``internal_error`` without its text."""
    match error:
        case ServerError():
            return error
        case TooManyPixelsError():
            return ServerError("too_many_pixels", str(error))
        case QueueFullError():
            return ServerError("queue_full", str(error), retry_after=error.wait_seconds)
        case DeadlineUnreachableError():
            return ServerError(
                "deadline_unreachable", str(error), param="deadline_ms", retry_after=error.wait_seconds
            )
        case RequestError():
            return ServerError("invalid_value", str(error), param=_param(str(error)))
        case UnsafeContentError():
            return ServerError("content_policy_violation", str(error))
        case OutOfMemoryError() | MemoryError():
            return ServerError(
                "out_of_memory", str(error) or "out of memory: ask for a smaller size or fewer images"
            )
        case NotFiniteError():
            return ServerError("not_finite", str(error))
        case EngineError():
            return ServerError("internal_error", str(error))
        case asyncio.CancelledError():
            return ServerError("draining", "the server ended before the request was finished: send it again")
    return ServerError("internal_error", f"the worker failed ({type(error).__name__}): see its log")


def _param(message: str) -> str | None:
    """The field that a validation message begins with."""
    first = message.removeprefix("no ").split(" ", 1)[0].rstrip(":,").split(".")[0]
    return _ALIASES.get(first, first) if first in Request.model_fields else None
