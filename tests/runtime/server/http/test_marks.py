"""Marks of generated pictures, in the answers of every API."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("c2pa", reason="c2pa-python is not installed (extra c2pa)")

from benchmarks.recording.authority import make_credentials
from benchmarks.serving.server_process import Server
from sd2rt.engines.demo.build import build_demo
from sd2rt.runtime import Pipeline
from sd2rt.runtime.provenance.c2pa import Manifest
from sd2rt.runtime.provenance.reading import read_marks
from sd2rt.runtime.provenance.watermark import embed

from .pictures import drawing, png

Fetch = Callable[..., tuple[int, bytes]]
FIELDS: dict[str, Any] = {
    "prompt": "a red circle",
    "num_inference_steps": 2,
    "seed": 3,
    "guidance_scale": 4.0,
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "demo"
    build_demo("demo", folder)
    return folder


@pytest.fixture(scope="module")
def marking(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    files = make_credentials(tmp_path_factory.mktemp("authority"))
    words = ("--watermark", "sdv2", "--c2pa-cert", str(files.certificate), "--c2pa-key", str(files.key))
    with Server(demo, *words) as server:
        yield server


def post(server: Server, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
    connection = HTTPConnection(urlsplit(server.url).netloc, timeout=120)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def get(server: Server, path: str) -> tuple[int, bytes]:
    connection = HTTPConnection(urlsplit(server.url).netloc, timeout=120)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def openai_picture(server: Server, **fields: Any) -> bytes:
    status, body = post(server, "/v1/images/generations", FIELDS | {"size": "256x256"} | fields)
    assert status == 200, body
    return base64.b64decode(json.loads(body)["data"][0]["b64_json"])


def job_picture(server: Server) -> bytes:
    status, body = post(server, "/v1/jobs", FIELDS | {"size": "256x256"})
    assert status in (200, 201, 202), body
    number = json.loads(body)["id"]
    # Events end with the job.
    get(server, f"/v1/jobs/{number}/events")
    status, body = get(server, f"/v1/jobs/{number}/image")
    assert status == 200, body
    return body


def sdapi_picture(server: Server, **fields: Any) -> bytes:
    path = "/sdapi/v1/img2img" if "init_images" in fields else "/sdapi/v1/txt2img"
    settings = {"prompt": "a red circle", "steps": 2, "seed": 3, "width": 256, "height": 256}
    status, body = post(server, path, settings | fields)
    assert status == 200, body
    return base64.b64decode(json.loads(body)["images"][0])


def hf_picture(server: Server) -> bytes:
    parameters = {"num_inference_steps": 2, "seed": 3, "width": 256, "height": 256}
    status, body = post(server, "/hf/demo", {"inputs": "a red circle", "parameters": parameters})
    assert status == 200, body
    return body


def marks_of(data: bytes, folder: Path) -> Any:
    file = folder / "picture"
    file.write_bytes(data)
    return read_marks(file)


@pytest.mark.parametrize("draw", [openai_picture, job_picture, sdapi_picture, hf_picture])
def test_every_api_marks(marking: Server, tmp_path: Path, draw: Callable[[Server], bytes]) -> None:
    marks = marks_of(draw(marking), tmp_path)
    assert marks.source_type == "trainedAlgorithmicMedia"
    assert isinstance(marks.manifest, Manifest)
    assert (marks.manifest.state, marks.manifest.source_type) == ("valid", "trainedAlgorithmicMedia")
    assert "parameters" in marks.texts


@pytest.mark.parametrize("file_format", ["jpeg", "webp"])
def test_every_format_is_marked(marking: Server, tmp_path: Path, file_format: str) -> None:
    marks = marks_of(openai_picture(marking, output_format=file_format), tmp_path)
    assert marks.source_type == "trainedAlgorithmicMedia"
    assert marks.manifest.state == "valid"


def test_the_watermark_is_on_the_picture_that_the_command_makes(marking: Server, demo: Path) -> None:
    with Pipeline.open(demo, device="cpu") as pipeline:
        (image,) = pipeline(**FIELDS, negative_prompt="", width=256, height=256).images
    with Image.open(io.BytesIO(openai_picture(marking))) as sent:
        np.testing.assert_array_equal(np.asarray(sent), embed(np.asarray(image)))


def test_an_unreadable_watermark_is_among_the_warnings(marking: Server) -> None:
    body = FIELDS | {"size": "256x256", "output_format": "jpeg", "n": 2}
    status, answer = post(marking, "/v1/images/generations", body)
    assert status == 200
    warnings = [text for text in json.loads(answer)["sd2rt"]["warnings"] if "cannot be read back" in text]
    assert len(warnings) == 2
    assert all(f"image {seed} as jpeg" in text for seed, text in zip((3, 4), sorted(warnings), strict=True))


def test_pictures_from_an_image_are_composites(marking: Server, tmp_path: Path) -> None:
    start = base64.b64encode(png(drawing(256, 256))).decode()
    marks = marks_of(sdapi_picture(marking, init_images=[start], denoising_strength=1.0), tmp_path)
    assert marks.source_type == marks.manifest.source_type == "compositeWithTrainedAlgorithmicMedia"


def test_small_pictures_are_refused(marking: Server) -> None:
    status, body = post(marking, "/v1/images/generations", FIELDS | {"size": "128x128"})
    error = json.loads(body)["error"]
    assert (status, error["code"], error["param"]) == (400, "size_not_supported", "size")
    assert "at least 256x256 pixels, and the picture has 128x128" in error["message"]


def test_no_metadata(demo: Path, tmp_path: Path) -> None:
    with Server(demo, "--no-metadata") as server:
        for draw in (openai_picture, job_picture, sdapi_picture, hf_picture):
            marks = marks_of(draw(server), tmp_path)
            assert (marks.source_type, marks.manifest, marks.texts) == (None, None, {})


def test_partial_pictures_have_xmp(marking: Server, tmp_path: Path) -> None:
    body = FIELDS | {"size": "256x256", "stream": True, "partial_images": 1, "num_inference_steps": 3}
    status, stream = post(marking, "/v1/images/generations", body)
    assert status == 200
    events = [json.loads(line[5:]) for line in stream.decode().splitlines() if line.startswith("data: {")]
    (partial,) = (event for event in events if event["type"] == "image_generation.partial_image")
    marks = marks_of(base64.b64decode(partial["b64_json"]), tmp_path)
    assert marks.source_type == "trainedAlgorithmicMedia"
