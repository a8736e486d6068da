"""Log lines."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from sd2rt.runtime.server.logs import LOGGERS, request_id, set_up_logs


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """Leave the loggers of other tests as they were."""
    names = (*LOGGERS, "uvicorn.access")
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).level) for name in names}
    yield
    for name, (handlers, level) in before.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate, logger.disabled = handlers, True, False
        logger.setLevel(level)


def test_json_lines() -> None:
    stream = io.StringIO()
    set_up_logs("json", "info", "front", stream)
    token = request_id.set("r1")
    logging.getLogger("sd2rt.runtime.server").info("two\nlines", extra={"fields": {"path": "/\x1b"}})
    request_id.reset(token)
    logging.getLogger("sd2rt.engines").debug("hidden")
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("sd2rt").exception("failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["message"] == "two\nlines"
    assert (first["request_id"], first["level"], first["path"]) == ("r1", "info", "/\x1b")
    assert first["process"] == "front"
    assert "why" in second["exception"]
    assert "request_id" not in second


def test_text_lines_are_printable() -> None:
    stream = io.StringIO()
    set_up_logs("text", "warning", "worker 1", stream)
    logging.getLogger("sd2rt.x").warning("a\x1b[31m", extra={"fields": {"path": "/\u202e", "model": None}})
    logging.getLogger("sd2rt.x").info("hidden")
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()
    assert "path=/" in line
    assert "model" not in line


def test_a_full_standard_error_ends_nothing() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "no space")

    set_up_logs("json", "info", "front", Full())
    logging.getLogger("sd2rt.x").error("lost")
