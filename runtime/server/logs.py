"""Logs of the server: JSON lines, or text on a terminal, with request ids."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from sd2rt.engines.printable import printable

LOGGERS = ("sd2rt", "uvicorn.error", "py.warnings")
LogFormat = Literal["json", "text"]
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Identity of the request that the current task answers."""


def chosen_format(kind: Literal["auto", "json", "text"]) -> LogFormat:
    """Return the format of log lines; ``auto`` is text on a terminal, else JSON."""
    return kind if kind != "auto" else "text" if sys.stderr.isatty() else "json"


def set_up_logs(kind: LogFormat, level: str, process: str, stream: TextIO | None = None) -> None:
    """Send this process's records to standard error, one a line.

    A line is lost if standard error is full or has no reader: that must not fail a request.

    Args:
        kind: of the lines.
        level: name of the lowest level that is logged.
        process: name of this process in the lines.
        stream: to write to, instead of standard error.
    """
    handler = _Handler(sys.stderr if stream is None else stream)
    handler.setFormatter(TextLines(process) if kind == "text" else JsonLines(process))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
    # Both say per connection what our own lines say per request.
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLogger("sd2rt").level))
    logging.getLogger("uvicorn.access").disabled = True


class _Lines(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process


class JsonLines(_Lines):
    """An object a record: time (UTC), level, process, logger, message, request_id, and the record's ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (identity := request_id.get()) is not None:
            line["request_id"] = identity
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(_Lines):
    """Time, level, process, message and fields, made printable: paths and models come from clients."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        parts = [time, record.levelname.lower(), f"{self._process}:", printable(record.getMessage())]
        fields = getattr(record, "fields", {})
        parts += [f"{name}={printable(value)}" for name, value in fields.items() if value is not None]
        if (identity := request_id.get()) is not None:
            parts.append(f"request_id={identity}")
        line = " ".join(parts)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Drop the line."""
