"""Pictures made by hand on the page: from text, images, masks and depth."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.serving.server_process import Server

from .browser import Visit, png

PROMPT = "a small red circle left of a large blue square on a white background"


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def of_api(server: Server, **fields: Any) -> Image.Image:
    answer = httpx.post(f"{server.url}/v1/images/generations", json=fields, timeout=60).raise_for_status()
    return opened(base64.b64decode(answer.json()["data"][0]["b64_json"]))


def test_text(visit: Visit, demo_server: Server) -> None:
    """The picture is the API's, and its file has the recipe."""
    page = visit.open()
    visit.fill(PROMPT, 4, negative_prompt="a star", seed=7, sampler="dpmpp-2m", schedule="karras")
    visit.generate()
    picture = visit.download()
    expected = of_api(
        demo_server,
        **{"prompt": PROMPT, "negative_prompt": "a star", "num_inference_steps": 4, "seed": 7},
        **{"sampler": "dpmpp-2m", "schedule": "karras"},
    )
    assert opened(picture).tobytes() == expected.tobytes()
    assert page.inner_text("#caption") == PROMPT
    facts = page.inner_text("#recipe").split("\n")
    assert facts[facts.index("Seed") + 1] == "7"
    assert facts[facts.index("Sampler") + 1] == "dpmpp-2m"
    assert page.get_attribute("#picture", "alt") == PROMPT
    assert page.inner_text("#live") == f"Finished: {PROMPT}"


def test_several_sizes_and_seeds(visit: Visit) -> None:
    page = visit.open()
    visit.fill(n=2, size="192x128")
    page.click("#generate")
    visit.wait_pictures(2)
    assert page.locator("#picture").evaluate("each => [each.naturalWidth, each.naturalHeight]") == [192, 128]
    page.click("#reuse")
    first = page.input_value("#seed")
    page.locator("#list button").nth(1).click()
    page.click("#reuse")
    assert abs(int(page.input_value("#seed")) - int(first)) == 1
    page.click("#random")
    assert page.input_value("#seed") == ""


def test_previews_and_progress(visit: Visit) -> None:
    page = visit.open()
    visit.fill(steps=50, n=4)
    page.click("#generate")
    page.wait_for_selector("#picture[src^='data:image/png']")
    assert re.match(r"Step \d+ of 200", page.inner_text("#progressText"))
    assert page.get_attribute("#progress", "max") is None
    assert 0 < float(page.get_attribute("#progress", "value") or 0) <= 1
    visit.wait_pictures(4)
    assert str(page.get_attribute("#picture", "src")).startswith("blob:")


def test_make_again(visit: Visit) -> None:
    """Also a picture of a random seed, after the form was changed."""
    page = visit.open()
    visit.fill(steps=3)
    visit.generate()
    first = visit.download()
    visit.fill("something else", 2, seed=1, guidance_scale=1)
    page.click("#again")
    visit.wait_pictures(2)
    assert opened(visit.download()).tobytes() == opened(first).tobytes()


def test_image_to_image(visit: Visit) -> None:
    page = visit.open()
    visit.task("Image")
    visit.source(png((300, 150)))
    # The shape stays, the area is the model's, and sides are multiples of 8.
    assert page.inner_text("#sourceFacts") == "300\u00d7150 → 184\u00d788"
    visit.fill(strength=0.5)
    visit.generate()
    assert opened(visit.download()).size == (184, 88)
    assert page.locator("#inputs figcaption").all_inner_texts() == ["Image"]


def test_own_results_go_on(visit: Visit) -> None:
    """A picture becomes a depth model's image, whose map is shown, and then an upscaler's."""
    page = visit.open()
    visit.fill(PROMPT, 8)
    visit.generate()
    page.locator("#send").get_by_text("Depth").click()
    page.wait_for_selector("#editor:not([hidden])")
    visit.fill(PROMPT, 2)
    visit.generate()
    assert page.locator("#inputs figcaption").all_inner_texts() == ["Image", "Depth map"]
    depth = page.locator("#inputs img").nth(1)
    depth.evaluate("each => each.decode()")
    assert depth.evaluate("each => each.naturalWidth") > 0
    page.locator("#send").get_by_text("Upscale").click()
    page.locator("#sourceFacts").get_by_text("128\u00d7128 → 512\u00d7512").wait_for()
    visit.fill(PROMPT, 1)
    visit.generate()
    assert opened(visit.download()).size == (512, 512)


def test_mask(visit: Visit) -> None:
    """Only the painted area changes, by mouse with brush, eraser, undo and clear."""
    page = visit.open()
    visit.task("Inpaint")
    visit.source(png())
    stroke(visit, (0.6, 0.6), (0.9, 0.9))
    brushed = painted(visit)
    assert brushed[96, 96]
    assert not brushed[:64, :64].any()
    page.click("#eraser")
    stroke(visit, (0.9, 0.6), (0.6, 0.9))
    assert painted(visit).sum() < brushed.sum()
    page.click("#undo")
    assert (painted(visit) == brushed).all()
    page.click("#clear")
    assert not painted(visit).any()
    page.click("#invert")
    assert painted(visit).all()
    page.click("#clear")
    page.click("#brush")
    stroke(visit, (0.6, 0.6), (0.9, 0.9))
    visit.fill(steps=2)
    visit.generate()
    before, after = np.asarray(opened(png())), np.asarray(opened(visit.download()))
    changed = (before != after).any(2)
    assert changed[brushed].any()
    # The edge of the mask is softened.
    assert not changed[:64, :64].any()
    assert page.locator("#inputs figcaption").all_inner_texts() == ["Image", "Mask: white is repainted"]
    # The recipe in the history has image and mask.
    page.click("#clear")
    page.click("#use")
    page.wait_for_function("() => !document.querySelector('#undo').disabled")
    assert (painted(visit) == brushed).all()


def test_mask_by_touch(visits: Any, demo_server: Server) -> None:
    visit = visits(demo_server.url, has_touch=True, is_mobile=True, viewport={"width": 360, "height": 740})
    page = visit.open()
    visit.task("Inpaint")
    visit.source(png())
    width = page.locator("#mask").evaluate("mask => mask.getBoundingClientRect().width")
    page.locator("#mask").tap(position={"x": width / 4, "y": width / 4})
    assert painted(visit)[32, 32]
    assert not painted(visit)[64:, 64:].any()
    visit.close()


def stroke(visit: Visit, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw a line on the mask; places are fractions of it."""
    visit.page.locator("#mask").scroll_into_view_if_needed()
    box = visit.page.locator("#mask").bounding_box()
    assert box is not None
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    visit.page.mouse.move(*places[0])
    visit.page.mouse.down()
    visit.page.mouse.move(*places[1], steps=8)
    visit.page.mouse.up()


def painted(visit: Visit) -> Any:
    """Return the painted area, [H, W] of bool."""
    return np.asarray(visit.canvas("mask"))[:, :, 3] >= 128
