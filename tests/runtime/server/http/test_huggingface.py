"""Hugging Face's client, against a real server."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import ImageToImageTargetSize, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from benchmarks.serving.server_process import Server
from sd2rt.runtime import Pipeline

from .pictures import base64_png, box_mask, drawing, equal, png

PROMPT = "a large green triangle"
SETTINGS: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def client(demo_server: Server) -> InferenceClient:
    return InferenceClient(model=f"{demo_server.url}/hf/demo", token="hf_none")


@pytest.fixture(scope="module")
def pipeline(demo_folders: dict[str, Path]) -> Iterator[Pipeline]:
    with Pipeline.open(demo_folders["demo"], device="cpu") as pipeline:
        yield pipeline


def test_text_to_image(client: InferenceClient, pipeline: Pipeline) -> None:
    found = client.text_to_image(PROMPT, negative_prompt="dark", width=128, height=64, seed=7, **SETTINGS)
    expected = pipeline(PROMPT, negative_prompt="dark", width=128, height=64, seed=7, **SETTINGS).images[0]
    assert equal(found, expected)
    by_class = client.text_to_image(
        PROMPT, scheduler="EulerAncestralDiscreteScheduler", seed=7, extra_body={"guidance_rescale": 0.5}
    )
    assert equal(by_class, pipeline(PROMPT, sampler="euler-a", seed=7, guidance_rescale=0.5).images[0])
    assert equal(client.text_to_image(PROMPT, seed=1), pipeline(PROMPT, seed=1).images[0])


def test_image_to_image(client: InferenceClient, pipeline: Pipeline, tmp_path: Path) -> None:
    image = drawing(192, 128)
    image.save(tmp_path / "image.png")
    for given in (png(image), tmp_path / "image.png"):
        found = client.image_to_image(given, prompt=PROMPT, strength=0.6, seed=3, **SETTINGS)
        expected = pipeline(PROMPT, image=image, strength=0.6, seed=3, **SETTINGS).images[0]
        assert equal(found, expected)
    sized = client.image_to_image(
        png(image), prompt=PROMPT, target_size=ImageToImageTargetSize(width=64, height=128)
    )
    assert sized.size == (64, 128)
    # Without a prompt the client sends the image alone.
    assert client.image_to_image(png(image)).size == (192, 128)
    assert client.image_to_image(png(image), seed=3).size == (192, 128)


def test_other_kinds(demo_server: Server) -> None:
    painter = InferenceClient(model=f"{demo_server.url}/hf/demo-inpaint")
    image, mask = drawing(), box_mask(128, 128, (40, 40, 90, 90))
    painted = painter.image_to_image(png(image), prompt=PROMPT, mask_image=base64_png(mask), seed=1)
    assert equal(painted.crop((0, 0, 40, 128)), image.crop((0, 0, 40, 128)))
    upscaler = InferenceClient(model=f"{demo_server.url}/hf/demo-x4")
    assert upscaler.image_to_image(png(drawing(64, 64)), prompt=PROMPT).size == (256, 256)


def test_formats_and_seeds(demo_server: Server) -> None:
    for accepted, kind in (("image/webp", "WEBP"), ("image/jpeg;q=0.9, */*", "JPEG"), ("*/*", "PNG")):
        answer = httpx.post(
            f"{demo_server.url}/hf/demo",
            json={"inputs": PROMPT, "parameters": {"num_inference_steps": 1}},
            headers={"accept": accepted},
            timeout=60,
        )
        assert answer.headers["content-type"] == f"image/{kind.lower()}"
        assert Image.open(io.BytesIO(answer.content)).format == kind
        assert int(answer.headers["x-seed"]) >= 0


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ({"width": 100, "height": 128}, 400, "96x128"),
        ({"width": 128}, 400, "height"),
        ({"extra_body": {"colour": "red"}}, 422, "colour"),
        ({"scheduler": "OtherScheduler"}, 422, "OtherScheduler"),
        ({"scheduler": "DDIMScheduler", "extra_body": {"sampler": "euler"}}, 400, "both"),
        ({"num_inference_steps": 0}, 400, "num_inference_steps"),
        ({"extra_body": {"n": 2}}, 422, "'n'"),
        ({"extra_body": {"strength": 0.5}}, 400, "needs image"),
    ],
)
def test_errors(client: InferenceClient, arguments: dict[str, Any], status: int, words: str) -> None:
    with pytest.raises(HfHubHTTPError) as error:
        client.text_to_image(PROMPT, **arguments)
    assert error.value.response.status_code == status
    assert words in str(error.value)


def test_more_errors(demo_server: Server) -> None:
    with pytest.raises(HfHubHTTPError) as error:
        InferenceClient(model=f"{demo_server.url}/hf/other").text_to_image(PROMPT)
    assert error.value.response.status_code == 404
    assert "other" in str(error.value)
    address = f"{demo_server.url}/hf/demo"
    for body in (
        {"inputs": "/etc/passwd", "parameters": {"prompt": "a"}},
        {"inputs": "http://127.0.0.1:1/a.png", "parameters": {"prompt": "a"}},
        {"inputs": 3},
        {},
    ):
        answer = httpx.post(address, json=body)
        assert answer.status_code == 400
        assert isinstance(answer.json()["error"], str)
    assert httpx.post(address, content=b"no image").status_code == 400
    assert httpx.post(address, content=b"a=b", headers={"content-type": "text/plain"}).status_code == 415
