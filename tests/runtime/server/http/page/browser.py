"""A visitor of the page: Debian's chromium, with real clicks against a real server."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_LONGEST_MS = 120_000
"""For pictures, on a machine that does other things too."""
AXE_VERSION = "4.14.1"
AXE_FOLDER = Path(__file__).parents[5] / "out" / "axe"
"""Ignored by git; `.ci/run` fills it."""
SECONDS = 30
"""Against hanging."""
_ACTIVE = """() => {
    const { id, name, checked, textContent } = document.activeElement;
    return id || (name ? `${name} ${checked}` : textContent);
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start chromium within a ``with`` block, or skip the test."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed (Debian: apt install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program)
        yield browser
        browser.close()


class Visit:
    """One visitor with a browser profile of its own.

    Args:
        browser: that is used.
        url: of the server.
        options: of the browser's context, such as ``viewport``.
    """

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.url = url
        self._context = browser.new_context(**{"locale": "en-US", **options})
        self._context.set_default_timeout(SECONDS * 1000)
        self.page: Page = self._context.new_page()
        self.errors: list[str] = []
        self.foreign: list[str] = []
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._request(request.url))
        self.page.on("dialog", lambda dialog: dialog.accept())

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.errors.append(text)

    def _request(self, url: str) -> None:
        if not url.startswith((self.url, f"blob:{self.url}", "data:")):
            self.foreign.append(url)

    def open(self, ready: bool = True) -> Page:
        """Open the page, and wait until it takes requests."""
        self.page.goto(self.url)
        if ready:
            self.page.wait_for_selector("#generate:enabled")
        return self.page

    def close(self, *expected: str) -> None:
        """Leave, and check that nothing went wrong on the way and nobody else was asked.

        Args:
            expected: parts of the console's errors that belong to the test, such as refusals.
        """
        self._context.close()
        assert self.foreign == []
        assert [text for text in self.errors if not any(part in text for part in expected)] == []

    def fill(self, prompt: str = "a large green triangle", steps: int = 3, **fields: Any) -> None:
        """Fill in fields by their ids."""
        values = {"prompt": prompt, "num_inference_steps": steps, **fields}
        if not self.page.locator("#more").evaluate("more => more.open"):
            self.page.click("summary")
        for name, value in values.items():
            field = self.page.locator(f"#{name}")
            if field.evaluate("field => field.tagName") == "SELECT":
                field.select_option(str(value))
            else:
                field.fill(str(value))

    def task(self, name: str) -> None:
        """Choose a task by its label."""
        self.page.get_by_role("radio", name=name).click()

    def source(self, content: bytes) -> None:
        """Choose a PNG as the image to start from."""
        file: Any = {"name": "source.png", "mimeType": "image/png", "buffer": content}
        self.page.set_input_files("#file", files=file)
        self.page.wait_for_selector("#editor:not([hidden])")

    def generate(self) -> None:
        """Press the button, and wait for the new picture."""
        before = self.pictures
        self.page.click("#generate")
        self.wait_pictures(before + 1)

    def wait_pictures(self, count: int) -> None:
        """Wait until the history holds a number of finished pictures, and one of them is shown."""
        self.page.wait_for_function(
            "count => document.querySelectorAll('#list img[loading]').length === count",
            arg=count,
            timeout=_LONGEST_MS,
        )
        self.page.wait_for_selector("#about:not([hidden])")

    @property
    def pictures(self) -> int:
        return int(self.page.locator("#list img[loading]").count())

    @property
    def active(self) -> str:
        """The focused element, by its id or text."""
        return str(self.page.evaluate(_ACTIVE))

    def download(self) -> bytes:
        """Download the picture that is shown."""
        with self.page.expect_download() as download:
            self.page.click("#download")
        return Path(download.value.path()).read_bytes()

    def canvas(self, name: str) -> Image.Image:
        """Return the pixels of a canvas."""
        url: str = self.page.evaluate("name => document.getElementById(name).toDataURL()", name)
        return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))

    def drop(self, name: str, content: bytes, target: str = "body") -> None:
        """Drop a PNG onto an element."""
        self.page.evaluate(
            """([target, name, content]) => {
                const files = new DataTransfer();
                const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
                files.items.add(new File([bytes], name, { type: 'image/png' }));
                for (const kind of ['dragenter', 'dragover', 'drop']) {
                    const event = new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: files });
                    document.querySelector(target).dispatchEvent(event);
                }
            }""",
            [target, name, base64.b64encode(content).decode()],
        )

    def violations(self) -> list[str]:
        """Check accessibility by axe-core, or skip the test."""
        folder = AXE_FOLDER / "node_modules" / "axe-core"
        if not (folder / "axe.min.js").is_file():
            pytest.skip(f"axe-core is missing: npm install --prefix out/axe axe-core@{AXE_VERSION}")
        assert json.loads((folder / "package.json").read_text())["version"] == AXE_VERSION
        # Through the debugger, which the page's content policy does not bind.
        self.page.evaluate((folder / "axe.min.js").read_text())
        found = self.page.evaluate("axe.run()")
        assert len(found["passes"]) > 10
        return [
            f"{each['id']}: {node['html'][:200]}" for each in found["violations"] for node in each["nodes"]
        ]


def png(size: tuple[int, int] = (128, 128), colour: tuple[int, int, int] = (250, 250, 250)) -> bytes:
    """Encode a picture with a red square in it."""
    image = Image.new("RGB", size, colour)
    image.paste((200, 30, 30), (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
