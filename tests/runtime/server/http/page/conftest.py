"""A browser, and visits to a server of all demos."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.serving.server_process import Server

from .browser import Visit, chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # No longer than a module: playwright keeps an event loop running in this thread, which others' tests need.
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, demo_server: Server) -> Iterator[Visit]:
    """A visit in which nothing goes wrong."""
    visit = Visit(browser, demo_server.url)
    yield visit
    visit.close()


@pytest.fixture
def visits(browser: Browser) -> Callable[..., Visit]:
    """Start visits to other servers, or with other options of the browser; the test closes them."""

    def start(url: str, **options: Any) -> Visit:
        return Visit(browser, url, **options)

    return start
