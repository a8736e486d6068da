"""Visits of the page: queues, refusals, keys, keyboards, reloads, files with recipes, the server's end."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, PngImagePlugin

from benchmarks.serving.server_process import Server

from .browser import Visit, png

Visits = Callable[..., Visit]


def test_cancel(visit: Visit, demo_server: Server) -> None:
    page = visit.open()
    visit.fill(steps=50, n=10)
    page.click("#generate")
    page.wait_for_selector("#progress[value]")
    page.click("#cancel")
    page.wait_for_selector("#empty:not([hidden])")
    assert page.inner_text("#live") == "Cancelled"
    assert visit.active == "prompt"
    demo_server.wait_until(lambda: b"sd2rt_requests_running 0.0" in demo_server.get("/metrics")[1])
    assert visit.pictures == 0


def test_queue(visit: Visit, demo_server: Server) -> None:
    """The queue's length is shown, and grows shorter; the API has it too."""
    page = visit.open()
    others = [
        httpx.post(
            f"{demo_server.url}/v1/jobs", json={"prompt": "x", "num_inference_steps": 50, "n": 10}
        ).json()
        for _ in range(4)
    ]
    states = [httpx.get(f"{demo_server.url}/v1/jobs/{each['id']}").json() for each in others]
    places = [each["queue_position"] for each in states if each["status"] == "queued"]
    assert places == sorted(places)
    visit.fill(steps=2)
    page.click("#generate")
    page.wait_for_function("() => /queue|Step/.test(document.querySelector('#progressText').textContent)")
    for each in others:
        httpx.delete(f"{demo_server.url}/v1/jobs/{each['id']}")
    visit.wait_pictures(1)


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        (
            {"size": "other", "width": "100", "height": "64"},
            "size",
            "size is 100x64, sides must be multiples of 8",
        ),
        (
            {"num_inference_steps": "51"},
            "num_inference_steps",
            "num_inference_steps is 51, more than this server's 50",
        ),
        ({"seed": "x"}, "seed", "seed is 'x'"),
    ],
)
def test_refusals(
    visits: Visits, demo_server: Server, fields: dict[str, Any], field: str, message: str
) -> None:
    """They are shown as the server says them, at the field that is to blame, until it is changed."""
    visit = visits(demo_server.url)
    page = visit.open()
    visit.fill(**fields)
    page.click("#generate")
    page.wait_for_selector("#formError:not([hidden])")
    assert page.inner_text("#formError").startswith(message)
    assert page.get_attribute("#formError", "role") == "alert"
    assert page.get_attribute(f"#{field}", "aria-invalid") == "true"
    assert visit.active == field
    visit.fill(size="128x128", seed="1")
    assert page.is_hidden("#formError")
    visit.generate()
    visit.close("400 (Bad Request)")


def test_a_failure_on_the_way(visits: Visits, demo_folders: dict[str, Path]) -> None:
    """The worker dies: the message is the server's, and the page goes on with the next worker."""
    with Server(demo_folders["demo"]) as server:
        visit = visits(server.url)
        page = visit.open()
        visit.fill(steps=50, n=10)
        page.click("#generate")
        page.wait_for_selector("#progress[value]")
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)
        page.wait_for_selector("#failure:not([hidden])")
        assert page.inner_text("#failure").startswith("the worker died before the request was finished")
        server.wait_until(lambda: server.workers() not in ([], [worker]))
        server.wait_ready()
        page.wait_for_selector("#generate:enabled")
        visit.fill(steps=1, n=1)
        visit.generate()
        assert page.is_hidden("#failure")
        visit.close("503 (Service Unavailable)")


def test_keys(visits: Visits, demo_folders: dict[str, Path]) -> None:
    """A key is asked for where the server does, kept in this tab alone, and a wrong one is told."""
    with Server(demo_folders["demo"], "--api-key", "right") as server:
        visit = visits(server.url)
        page = visit.open(ready=False)
        page.wait_for_selector("#keyDialog[open]")
        assert visit.active == "key"
        assert page.is_hidden("#keyError")
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#keyError:not([hidden])")
        assert page.inner_text("#keyError") == "the API key is not one of this server's: check its value"
        page.keyboard.type("right")
        page.keyboard.press("Enter")
        page.wait_for_selector("#generate:enabled")
        visit.fill(steps=2)
        visit.generate()
        assert page.evaluate("[sessionStorage['sd2rt.key'], JSON.stringify(localStorage)]") == ["right", "{}"]
        page.reload()
        page.wait_for_selector("#generate:enabled")
        assert page.locator("#keyDialog[open]").count() == 0
        assert visit.pictures == 1
        visit.close("401 (Unauthorized)")


def test_a_key_is_refused(visits: Visits, demo_folders: dict[str, Path]) -> None:
    with Server(demo_folders["demo"], "--api-key", "right") as server:
        visit = visits(server.url)
        page = visit.open(ready=False)
        page.wait_for_selector("#keyDialog[open]")
        page.keyboard.press("Escape")
        page.wait_for_selector("#formError:not([hidden])")
        assert page.inner_text("#formError") == "The server asks for a key: reload to enter it."
        assert page.is_disabled("#generate")
        visit.close("401 (Unauthorized)")


def test_keyboard_alone(visit: Visit) -> None:
    """Every control is reached by Tab, in the order of the page; tasks and pictures by arrows."""
    page = visit.open()
    press = page.keyboard.press
    reached = []
    for _ in range(16):
        press("Tab")
        reached.append(visit.active)
    assert reached[:7] == ["language", "mode true", "prompt", "negative_prompt", "model", "size", "n"]
    assert {"num_inference_steps", "guidance_scale", "sampler", "schedule", "seed", "generate"} <= set(
        reached
    )
    page.focus("#prompt")
    page.keyboard.type("a large green triangle")
    page.focus("#num_inference_steps")
    press("Control+A")
    page.keyboard.type("2")
    press("Control+Enter")
    visit.wait_pictures(1)
    press("Control+Enter")
    visit.wait_pictures(2)
    page.focus("#list [tabindex='0']")
    first = page.get_attribute("#picture", "src")
    press("ArrowRight")
    assert page.get_attribute("#picture", "src") != first
    press("ArrowLeft")
    assert page.get_attribute("#picture", "src") == first
    # A mask of the picture, painted by keys.
    page.focus("#modes :checked")
    press("ArrowRight")
    press("ArrowRight")
    assert page.locator("#modes :checked + span").inner_text() == "Inpaint"
    page.locator("#send button").nth(1).focus()
    press("Enter")
    page.wait_for_selector("#editor:not([hidden])")
    page.wait_for_function("() => document.activeElement.id === 'mask'")
    press("Space")
    assert visit.canvas("mask").getpixel((64, 64)) != (0, 0, 0, 0)
    for _ in range(4):
        press("Shift+ArrowRight")
    assert visit.canvas("mask").getpixel((90, 64)) != (0, 0, 0, 0)
    press("Control+z")
    press("Control+Enter")
    visit.wait_pictures(3)


def test_a_reload_keeps_everything(visit: Visit) -> None:
    """Finished pictures stay; what is running is found again."""
    page = visit.open()
    visit.fill("a blue star", 2)
    visit.generate()
    first = visit.download()
    visit.fill("a red star", 50)
    page.click("#generate")
    page.wait_for_selector("#progress[value]")
    page.reload()
    visit.wait_pictures(2)
    page.locator("#list button").nth(1).click()
    assert page.inner_text("#caption") == "a blue star"
    assert visit.download() == first
    page.click("#delete")
    visit.wait_pictures(1)
    assert page.inner_text("#caption") == "a red star"
    page.reload()
    visit.wait_pictures(1)
    page.click("#wipe")
    page.wait_for_selector("#empty:not([hidden])")
    page.reload()
    page.wait_for_selector("#generate:enabled")
    assert visit.pictures == 0


def test_the_history_is_bounded(visit: Visit) -> None:
    page = visit.open()
    # Older pictures, as the page stores them.
    page.evaluate(
        """async () => {
            const opening = indexedDB.open('sd2rt');
            await new Promise((done) => (opening.onsuccess = done));
            const change = opening.result.transaction('pictures', 'readwrite');
            for (let index = 0; index < 100; index++) change.objectStore('pictures').put({
                key: `old/${index}`, at: index, blob: new Blob(['x']), made: { size: '64x64' },
                recipe: { mode: 'text', prompt: `old ${index}`, seed: '1', loras: [] },
            });
            await new Promise((done) => (change.oncomplete = done));
        }"""
    )
    page.reload()
    page.wait_for_selector("#generate:enabled")
    assert visit.pictures == 100
    visit.fill(steps=1)
    page.click("#generate")
    page.wait_for_function(
        "() => document.querySelector('#caption').textContent === 'a large green triangle'"
    )
    assert visit.pictures == 100
    page.reload()
    page.wait_for_selector("#generate:enabled")
    assert visit.pictures == 100
    assert page.locator("#list button").nth(99).get_attribute("aria-label") == "old 1"


def test_dropping_a_picture_reads_its_recipe(visit: Visit) -> None:
    page = visit.open()
    prompt = "a blue star, 50% \u00e4\u00f6"
    visit.fill(
        prompt,
        3,
        seed=9,
        guidance_scale=3.25,
        sampler="euler",
        schedule="karras",
        size="256x256",
    )
    visit.generate()
    picture = visit.download()
    visit.fill("other", 1, seed="", guidance_scale=1, sampler="", size="128x128")
    visit.drop("star.png", picture)
    page.wait_for_selector("#notice:not([hidden])")
    assert page.inner_text("#noticeText") == "Recipe of star.png read."
    fields = ("prompt", "num_inference_steps", "seed", "guidance_scale", "sampler", "schedule", "size")
    assert [page.input_value(f"#{name}") for name in fields] == [
        *(prompt, "3", "9", "3.25", "euler", "karras", "256x256")
    ]
    visit.generate()
    assert pixels(visit.download()) == pixels(picture)
    visit.drop("star.png", picture)
    page.click("#noticeAction")
    page.wait_for_selector("#editor:not([hidden])")


A1111 = """a castle, (stone:1.2)
by the sea
Negative prompt: blurry,
low quality
Steps: 21, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 6.5, Seed: 12345678901, Size: 192x128, \
Model hash: 0123456789, Model: "some, model", Version: v1.10"""


@pytest.mark.parametrize("kind", ["tEXt", "iTXt", "zTXt", "packed iTXt"])
def test_recipes_of_automatic1111(visit: Visit, kind: str) -> None:
    page = visit.open()
    text = PngImagePlugin.PngInfo()
    if "iTXt" in kind:
        text.add_itxt("parameters", A1111, "en", "Parameter", zip=kind != "iTXt")
    else:
        text.add_text("parameters", A1111, zip=kind == "zTXt")
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG", pnginfo=text)
    visit.drop("castle.png", file.getvalue())
    page.wait_for_selector("#notice:not([hidden])")
    assert "some, model" in page.inner_text("#noticeText")
    fields = (
        "prompt",
        "negative_prompt",
        "num_inference_steps",
        "seed",
        "guidance_scale",
        "sampler",
        "schedule",
    )
    assert [page.input_value(f"#{name}") for name in fields] == [
        *("a castle, (stone:1.2)\nby the sea", "blurry,\nlow quality", "21", "12345678901", "6.5"),
        *("dpmpp-2m-sde", "karras"),
    ]


def test_files_that_are_no_pictures(visit: Visit) -> None:
    page = visit.open()
    for content in (b"", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\xff\xff\xff\xfftEXtparameters", b"GIF89a"):
        visit.drop("odd.png", content)
        page.wait_for_selector("#notice:not([hidden])")
        assert page.inner_text("#noticeText") == "odd.png is not an image that this browser can read."
        page.click("#noticeClose")
    visit.drop("plain.png", png())
    page.wait_for_selector("#editor:not([hidden])")
    assert page.locator("#modes :checked + span").inner_text() == "Image"


def test_languages(visits: Visits, demo_server: Server) -> None:
    """The browser's language is the first choice, the visitor's the next; changing it keeps what was typed."""
    visit = visits(demo_server.url, locale="de-AT")
    page = visit.open()
    assert page.get_attribute("html", "lang") == "de"
    assert "Erzeugen" in page.inner_text("#generate")
    visit.fill("ein Stern", 7, size="192x128", n=3)
    page.select_option("#language", "en")
    assert "Generate" in page.inner_text("#generate")
    names = ("prompt", "num_inference_steps", "size", "n")
    assert [page.input_value(f"#{name}") for name in names] == ["ein Stern", "7", "192x128", "3"]
    page.reload()
    page.wait_for_selector("#generate:enabled")
    assert page.get_attribute("html", "lang") == "en"
    visit.close()


def test_a_server_that_ends(visits: Visits, demo_folders: dict[str, Path]) -> None:
    """Draining, then offline, are shown."""
    with Server(demo_folders["demo"]) as server:
        visit = visits(server.url)
        page = visit.open()
        # Longer than the page takes to ask for the server's state.
        visit.fill(steps=150, n=5)
        page.click("#generate")
        page.wait_for_selector("#progress[value]")
        server.process.send_signal(signal.SIGTERM)
        page.wait_for_function("() => document.querySelector('#serverText').textContent === 'Shutting down'")
        assert page.is_disabled("#generate")
        assert page.inner_text("#banner").startswith("The server is shutting down")
        page.wait_for_function(
            "() => document.querySelector('#serverText').textContent === 'Offline'", timeout=120_000
        )
        assert page.inner_text("#banner").startswith("No connection to the server")
        assert server.wait() == 0
        visit.close(
            "503 (Service Unavailable)",
            "ERR_CONNECTION_REFUSED",
            "ERR_EMPTY_RESPONSE",
            "ERR_CONNECTION_RESET",
        )


def test_loras(visits: Visits, demo_folders: dict[str, Path], demo_lora: Path) -> None:
    """Those of the model can be chosen with a scale, and are part of the recipe."""
    with Server(demo_folders["demo"], "--lora", f"ink={demo_lora}") as server:
        visit = visits(server.url)
        page = visit.open()
        visit.fill(steps=2, seed=3)
        visit.generate()
        plain = visit.download()
        page.get_by_label("ink", exact=True).check()
        page.get_by_label("Scale of ink").fill("0.5")
        visit.generate()
        inked = visit.download()
        assert pixels(inked) != pixels(plain)
        assert "ink 0.5" in page.inner_text("#recipe")
        page.get_by_label("ink", exact=True).uncheck()
        page.click("#again")
        visit.wait_pictures(3)
        assert pixels(visit.download()) == pixels(inked)
        visit.close()


def pixels(content: bytes) -> bytes:
    return Image.open(io.BytesIO(content)).convert("RGB").tobytes()
