"""The page's files: weight, headers, and no key for them."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from benchmarks.serving.server_process import Server

FOLDER = Path(__file__).parents[5] / "runtime" / "server" / "http" / "page"
MOST_BYTES = 60_000
PATHS = {"/": "text/html", "/page/page.js": "text/javascript", "/page/page.css": "text/css"}


def test_weight() -> None:
    files = {
        path.name: path.stat().st_size for path in FOLDER.iterdir() if path.suffix != ".py" and path.is_file()
    }
    assert files.keys() == {"index.html", "page.js", "page.css"}
    assert sum(files.values()) <= MOST_BYTES, files


def test_nothing_inline_and_nothing_foreign() -> None:
    html = (FOLDER / "index.html").read_text()
    assert re.findall(r"\s(?:style|on\w+)=", html) == []
    assert re.findall(r"<style|<script(?! src=)", html) == []
    for path in FOLDER.glob("*.[hjc]*"):
        # The namespace of SVG is a name, and nothing that is fetched.
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", path.read_text()) == [], path


def test_every_text_is_there() -> None:
    """Every name that the page or its script asks for has an English text, and a German one if it differs."""
    script, html = (FOLDER / "page.js").read_text(), (FOLDER / "index.html").read_text()
    table = script[script.index("const TEXTS") : script.index("const TASKS")]
    known = set(re.findall(r"[{,\n]\s*(\w+): \[", table))
    asked = set(re.findall(r"""(?:data-t|data-label)="(\w+)\"""", html)) | set(
        re.findall(r'\bt\("(\w+)"', script)
    )
    assert len(known) > 80
    assert asked - known == set()


@pytest.mark.parametrize("path", PATHS)
def test_headers(demo_server: Server, path: str) -> None:
    answer = httpx.get(demo_server.url + path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == f"{PATHS[path]}; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    policy = answer.headers["content-security-policy"].split("; ")
    assert policy[:5] == [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
    ]
    again = httpx.get(demo_server.url + path, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == answer.headers["content-security-policy"]
    other = httpx.get(demo_server.url + path, headers={"if-none-match": '"other"'})
    assert other.status_code == 200
    assert httpx.head(demo_server.url + path).status_code == 200
    assert httpx.post(demo_server.url + path).status_code == 405


def test_before_the_models_and_without_a_key(demo_folders: dict[str, Path]) -> None:
    """The front process alone serves the page, also where keys are asked for."""
    with Server(demo_folders["demo"], "--api-key", "k", wait=False) as server:
        for path in PATHS:
            assert httpx.get(server.url + path).status_code == 200
        assert httpx.get(f"{server.url}/v1/options").status_code == 401


def test_options(demo_server: Server) -> None:
    found = httpx.get(f"{demo_server.url}/v1/options").json()
    schedules = {each["name"]: each["schedules"] for each in found["samplers"]}
    assert "karras" in schedules["euler"]
    assert schedules["lcm"] == []
    assert found["limits"]["max_steps"] == 50
    assert found["limits"]["max_side"] == 256
