"""Exceptions of the runtime as errors of a request: the code, the field, and no text of what is not known."""

from __future__ import annotations

import asyncio

import pytest

from sd2rt.engines.errors import EngineError, NotFiniteError, OutOfMemoryError, RequestError
from sd2rt.runtime.images.read import TooManyPixelsError
from sd2rt.runtime.scheduling.admission import DeadlineUnreachableError, QueueFullError
from sd2rt.runtime.server.errors import ServerError
from sd2rt.runtime.server.worker.failures import server_error


@pytest.mark.parametrize(
    ("error", "code", "param"),
    [
        (RequestError("seed is 'a': use a number"), "invalid_value", "seed"),
        (RequestError("no sampler is named 'x': choose one"), "invalid_value", "sampler"),
        (RequestError("width is 3: use 64"), "invalid_value", "size"),
        (RequestError("mask_image is 3: use a path"), "invalid_value", "mask"),
        (RequestError("the mask is 3x3"), "invalid_value", None),
        (TooManyPixelsError("the image is large"), "too_many_pixels", None),
        (OutOfMemoryError("out of memory"), "out_of_memory", None),
        (MemoryError(), "out_of_memory", None),
        (NotFiniteError("latents are not finite", "step"), "not_finite", None),
        (EngineError("the device failed"), "internal_error", None),
        (QueueFullError(3, 3, 7.0), "queue_full", None),
        (DeadlineUnreachableError(3.0, 1.0), "deadline_unreachable", "deadline_ms"),
        (asyncio.CancelledError(), "draining", None),
        (ServerError("poisoned", "x", param="a"), "poisoned", "a"),
    ],
)
def test_codes(error: BaseException, code: str, param: str | None) -> None:
    converted = server_error(error)
    assert (converted.code, converted.param) == (code, param)
    assert converted.message
    assert "\n" not in converted.message


def test_what_is_not_known_keeps_its_text() -> None:
    """It could hold a path, or a prompt."""
    error = server_error(KeyError("/root/secret"))
    assert error.code == "internal_error"
    assert "secret" not in error.message
    assert "KeyError" in error.message
