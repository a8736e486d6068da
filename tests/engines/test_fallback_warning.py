"""Warnings of fallbacks, to the caller and to a log."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sd2rt.engines.fallback_warning import warn_of_fallback


def fall_back(log: logging.Logger) -> None:
    warn_of_fallback(log, "100% slower", stacklevel=2)


def test_the_caller_and_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.warns(RuntimeWarning, match="100% slower") as caught:
        fall_back(logging.getLogger("sd2rt.engines.test"))
    assert Path(caught[0].filename) == Path(__file__)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "100% slower")
    ]
