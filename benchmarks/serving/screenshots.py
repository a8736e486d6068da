"""Take pictures of the server's page for docs/serving.md: Debian's chromium, a real server of the demos.

    python -m benchmarks.serving.screenshots [FOLDER]

Needs `chromium` and the extra `dev`; about a minute on 2 cores.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from benchmarks.serving.server_process import Server
from sd2rt.engines.demo.build import build_demo

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FOLDER = Path(__file__).resolve().parents[2] / "docs"
BUNDLES = ("demo", "demo-inpaint", "demo-depth", "demo-x4")
PROMPT = "a small red circle left of a large blue square on a white background"
TRIANGLE = "a large green triangle on a white background"
EARLIER = (
    "a large yellow triangle in the center on a dark gradient background",
    "a medium pink circle in the top left corner on a light gradient background",
    "a large cyan cross below a medium yellow square on a dark gradient background",
)
MOST_BYTES = 30_000
_QUALITIES = range(88, 40, -6)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.screenshots", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="where files are written")
    folder: Path = parser.parse_args().folder
    program = shutil.which("chromium")
    if program is None:
        sys.exit("benchmarks.serving.screenshots: chromium is not installed (Debian: apt install chromium)")
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        bundles = [Path(temporary) / name for name in BUNDLES]
        for bundle in bundles:
            build_demo(bundle.name, bundle)
        browser = playwright.chromium.launch(executable_path=program)
        with Server(*bundles) as server:
            with visit(browser, server, 1280, 1010, "light") as page:
                for seed, prompt in enumerate((*EARLIER, PROMPT)):
                    generate(page, prompt, seed=str(seed + 1))
                save(page, folder / "page.webp", 1120)
            with visit(browser, server, 390, 844, "dark") as page:
                generate(page, PROMPT, seed="4")
                page.locator("#send").get_by_text("Inpaint").click()
                page.wait_for_selector("#editor:not([hidden])")
                page.fill("#prompt", TRIANGLE)
                draw(page)
                page.evaluate("scrollTo(0, 0)")
                save(page, folder / "page-mask.webp", 390)
        browser.close()


@contextmanager
def visit(browser: Browser, server: Server, width: int, height: int, scheme: Any) -> Iterator[Page]:
    """Open the page in a window of a size."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, locale="en-US"
    )
    page = context.new_page()
    page.goto(server.url)
    page.wait_for_selector("#generate:enabled")
    yield page
    context.close()


def generate(page: Page, prompt: str, **fields: str) -> None:
    """Make a picture, and wait for it."""
    page.locator("#more").evaluate("more => { more.open = true; }")
    for name, value in {"prompt": prompt, "num_inference_steps": "25", **fields}.items():
        page.fill(f"#{name}", value)
    page.click("#generate")
    page.wait_for_selector("#running:not([hidden])")
    page.wait_for_selector("#about:not([hidden])")
    page.mouse.move(0, 0)


def draw(page: Page) -> None:
    """Draw a mask over the right half of the picture."""
    page.locator("#mask").scroll_into_view_if_needed()
    box = page.locator("#mask").bounding_box()
    assert box is not None
    places = [(0.62, 0.4), (0.9, 0.42), (0.62, 0.55), (0.9, 0.6), (0.64, 0.7)]
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=10)
    page.mouse.up()


def save(page: Page, path: Path, width: int) -> None:
    """Write a picture of the window as the best WebP of at most 30 kB."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    for quality in _QUALITIES:
        file = io.BytesIO()
        image.save(file, "WEBP", quality=quality, method=6)
        if file.tell() <= MOST_BYTES:
            path.write_bytes(file.getvalue())
            print(f"wrote {path}: {file.tell()} bytes, quality {quality}", file=sys.stderr)
            return
    raise ValueError(f"{path.name} does not fit in {MOST_BYTES} bytes: make it smaller")


if __name__ == "__main__":
    main()
