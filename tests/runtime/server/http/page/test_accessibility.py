"""The page in every state: axe-core finds nothing, in both schemes, and nothing is wider than the window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.serving.server_process import Server

from .browser import Visit, png

Visits = Callable[..., Visit]
WIDTHS = (360, 800, 1440)


def fits(visit: Visit) -> bool:
    """Return whether nothing sticks out of the window."""
    return bool(visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_states(visits: Visits, demo_server: Server, scheme: str) -> None:
    """Empty, refused, running, finished, and with a mask."""
    visit = visits(demo_server.url, color_scheme=scheme, reduced_motion="reduce")
    page = visit.open()
    found = visit.violations()
    visit.fill(seed="x")
    page.click("#generate")
    page.wait_for_selector("#formError:not([hidden])")
    found += visit.violations()
    visit.fill(steps=50, seed="", n=10)
    page.click("#generate")
    page.wait_for_selector("#progress[value]")
    found += visit.violations()
    page.click("#cancel")
    visit.fill(steps=2, n=2)
    page.click("#generate")
    visit.wait_pictures(2)
    found += visit.violations()
    visit.task("Inpaint")
    visit.source(png())
    page.focus("#mask")
    page.keyboard.press("Space")
    visit.drop("odd.png", b"")
    page.wait_for_selector("#notice:not([hidden])")
    found += visit.violations()
    assert found == []
    visit.close("400 (Bad Request)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_where_keys_are_asked_for(visits: Visits, demo_folders: dict[str, Path], scheme: str) -> None:
    with Server(demo_folders["demo"], "--api-key", "right") as server:
        visit = visits(server.url, color_scheme=scheme)
        page = visit.open(ready=False)
        page.wait_for_selector("#keyDialog[open]")
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#keyError:not([hidden])")
        found = visit.violations()
        server.stop()
        page.keyboard.press("Escape")
        page.wait_for_selector("#dot.offline")
        found += visit.violations()
        assert found == []
        visit.close("401 (Unauthorized)", "ERR_")


@pytest.mark.parametrize("locale", ["en-US", "de-DE"])
def test_widths(visits: Visits, demo_server: Server, locale: str) -> None:
    visit = visits(demo_server.url, locale=locale)
    page = visit.open()
    visit.fill("a large green triangle " * 8, 1)
    visit.generate()
    for index in range(5):
        page.locator("#modes input").nth(index).check(force=True)
        if index == 1:
            visit.source(png((128, 320)))
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            assert fits(visit), (index, width)
    visit.close()
