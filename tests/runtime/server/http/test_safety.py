"""A check that refuses every picture: no API sends one, finished or on the way."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from benchmarks.serving.server_process import Server
from sd2rt.engines.demo.build import build_demo

from .pictures import drawing, png

RULES = """
def refuse(image):
    return True
def fail(image):
    raise ValueError("no model")
"""
FIELDS: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 6, "seed": 3, "size": "128x128"}
SDAPI: dict[str, Any] = {"prompt": "a red circle", "steps": 6, "seed": 3, "width": 128, "height": 128}
HF: dict[str, Any] = {"inputs": "a red circle", "parameters": {"num_inference_steps": 2}}
START = base64.b64encode(png(drawing(128, 128))).decode()
CALLS = {
    "openai": ("/v1/images/generations", FIELDS),
    "openai, several": ("/v1/images/generations", FIELDS | {"n": 2, "output_format": "jpeg"}),
    "txt2img": ("/sdapi/v1/txt2img", SDAPI),
    "img2img": ("/sdapi/v1/img2img", SDAPI | {"init_images": [START], "denoising_strength": 0.5}),
    "hf": ("/hf/demo", HF),
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "demo"
    build_demo("demo", folder)
    (folder.parent / "rules.py").write_text(RULES)
    return folder


def environment(demo: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(demo.parent)}


@pytest.fixture(scope="module")
def refusing(demo: Path) -> Iterator[Server]:
    with Server(demo, "--threads", "1", "--safety", "rules:refuse", env=environment(demo)) as server:
        yield server


def ask(server: Server, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
    connection = HTTPConnection(urlsplit(server.url).netloc, timeout=120)
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("call", CALLS)
def test_every_api_refuses(refusing: Server, call: str) -> None:
    path, body = CALLS[call]
    status, answer = ask(refusing, "POST", path, body)
    facts = json.loads(answer)
    assert status == 400
    # The client for /hf reads a text there.
    message = facts["error"] if call == "hf" else facts["error"]["message"]
    assert message.startswith("the safety check rules:refuse refuses the image")
    assert "content_policy_violation" in answer.decode()


def test_a_refused_job_has_no_image_and_no_previews(refusing: Server) -> None:
    body = FIELDS | {"previews": True}
    job = json.loads(ask(refusing, "POST", "/v1/jobs", body)[1])["id"]
    _, events = ask(refusing, "GET", f"/v1/jobs/{job}/events")
    assert b"content_policy_violation" in events
    assert b"b64" not in events
    _, described = ask(refusing, "GET", f"/v1/jobs/{job}")
    facts = json.loads(described)
    assert (facts["status"], facts["error"]["code"]) == ("failed", "content_policy_violation")
    assert "b64" not in described.decode()
    assert ask(refusing, "GET", f"/v1/jobs/{job}/image")[0] == 404


def test_a_stream_has_no_partial_image_that_the_check_refuses(refusing: Server) -> None:
    status, events = ask(
        refusing, "POST", "/v1/images/generations", FIELDS | {"stream": True, "partial_images": 3}
    )
    assert status == 200
    assert b"content_policy_violation" in events
    assert b"b64_json" not in events
    assert b"partial_image" not in events


def test_progress_has_no_picture(refusing: Server) -> None:
    ask(refusing, "POST", "/sdapi/v1/txt2img", SDAPI)
    _, progress = ask(refusing, "GET", "/sdapi/v1/progress")
    assert not json.loads(progress)["current_image"]


def test_a_check_that_fails_is_an_error_of_the_server(demo: Path) -> None:
    with Server(demo, "--threads", "1", "--safety", "rules:fail", env=environment(demo)) as server:
        for body in (FIELDS, FIELDS | {"stream": True, "partial_images": 1}):
            status, answer = ask(server, "POST", "/v1/images/generations", body)
            assert b"the safety check rules:fail failed" in answer
            assert b"b64_json" not in answer
            assert b"content_policy_violation" not in answer
            assert status == (200 if "stream" in body else 500)
        # The worker goes on.
        assert ask(server, "GET", "/readyz")[0] == 200
