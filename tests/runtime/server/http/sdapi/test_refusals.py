"""Refusals: 422 names what is not done; wrong values are 400; paths and addresses are never read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.serving.server_process import Server

from ..pictures import base64_png, box_mask, drawing

IMAGE = base64_png(drawing(64, 64))
MASK = base64_png(box_mask(64, 64, (8, 8, 40, 40)))
BODY: dict[str, Any] = {"prompt": "a red circle", "steps": 1, "width": 64, "height": 64}


def post(server: Server, name: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/sdapi/v1/{name}", json=BODY | fields, timeout=60)


def refused(answer: httpx.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert found["detail"] == found["error"]["message"]
    for word in words:
        assert word in found["detail"]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"enable_hr": True}, "enable_hr"),
        ({"restore_faces": True}, "restore_faces"),
        ({"tiling": True}, "tiling"),
        ({"styles": ["ink"]}, "styles"),
        ({"subseed": 3, "subseed_strength": 0.1}, "subseed_strength"),
        ({"seed_resize_from_h": 64}, "seed_resize_from_h"),
        ({"script_name": "x/y/z plot", "script_args": [1]}, "x/y/z plot"),
        ({"alwayson_scripts": {"ControlNet": {"args": [{"enabled": True}]}}}, "ControlNet"),
        ({"alwayson_scripts": {"ADetailer": [True]}}, "ADetailer"),
        ({"controlnet_units": [{}]}, "controlnet_units"),
        ({"refiner_checkpoint": "other"}, "refiner_checkpoint"),
        ({"override_settings": {"sd_vae": "other.pt"}}, "sd_vae"),
        ({"override_settings": {"eta_noise_seed_delta": 31337}}, "eta_noise_seed_delta"),
        ({"override_settings": {"anything": 1}}, "anything"),
        ({"sampler_name": "DPM adaptive"}, "DPM adaptive"),
        ({"sampler_name": "Euler", "scheduler": "Turbo"}, "Turbo"),
        ({"sampler_name": "Euler a", "eta": 0.5}, "eta"),
        ({"prompt": "<hypernet:a:1>"}, "hypernet"),
        ({"negative_prompt": "<lora:a:0.5>"}, "lora"),
        ({"infotext": "Steps: 3"}, "infotext"),
    ],
)
def test_not_done(demo_server: Server, fields: dict[str, Any], word: str) -> None:
    answer = post(demo_server, "txt2img", **fields)
    refused(answer, 422, word)
    assert answer.json()["error"]["code"] == "not_supported"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"init_images": [IMAGE, IMAGE]}, "init_images"),
        ({"init_images": [IMAGE], "resize_mode": 3}, "resize_mode"),
        ({"init_images": [IMAGE], "mask": MASK, "inpainting_fill": 2}, "inpainting_fill"),
        ({"init_images": [IMAGE], "initial_noise_multiplier": 0.5}, "initial_noise_multiplier"),
    ],
)
def test_not_done_with_images(demo_server: Server, fields: dict[str, Any], word: str) -> None:
    refused(post(demo_server, "img2img", **fields), 422, word)


@pytest.mark.parametrize(
    ("fields", "status", "word"),
    [
        ({"steps": "many"}, 400, "steps"),
        ({"steps": 0}, 400, "steps"),
        ({"seed": -2}, 400, "seed"),
        ({"width": 100}, 400, "104x64"),
        ({"height": None}, 400, "height"),
        ({"batch_size": 4, "n_iter": 4}, 400, "n_iter"),
        ({"prompt": "<lora:unknown:1>"}, 400, "unknown"),
        ({"prompt": "<lora:unknown:x>"}, 400, "scale"),
        ({"override_settings": {"sd_model_checkpoint": "other"}}, 404, "other"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 99}}, 400, "CLIP_stop_at_last_layers"),
        ({"override_settings": {"sd_model_checkpoint": "demo-x4"}}, 400, "text-to-image"),
    ],
)
def test_wrong_values(demo_server: Server, fields: dict[str, Any], status: int, word: str) -> None:
    refused(post(demo_server, "txt2img", **fields), status, word)


@pytest.mark.parametrize("field", ["init_images", "mask", "image"])
def test_paths_and_addresses_are_not_images(demo_server: Server, tmp_path: Path, field: str) -> None:
    file = tmp_path / "image.png"
    drawing().save(file)
    for text in (str(file), f"file://{file}", "http://127.0.0.1:1/a.png", "/etc/passwd", "-", ""):
        if field == "image":
            answer = post(demo_server, "png-info", image=text)
        else:
            values = {"init_images": [IMAGE], "mask": MASK} | {
                field: [text] if field == "init_images" else text
            }
            if field == "mask" and not text:
                continue
            answer = post(demo_server, "img2img", **values)
        refused(answer, 400, "PNG")
    for name in ("extra-single-image", "extra-batch-images"):
        given = {"image": str(file), "imageList": [{"data": str(file), "name": "a"}]}
        refused(post(demo_server, name, **given), 400, "PNG")


@pytest.mark.parametrize(
    ("fields", "status", "word"),
    [
        ({"upscaler_1": "ESRGAN_4x"}, 422, "ESRGAN_4x"),
        ({"gfpgan_visibility": 1}, 422, "gfpgan_visibility"),
        ({"upscaler_2": "demo-x4", "extras_upscaler_2_visibility": 0.5}, 422, "upscaler_2_visibility"),
        ({"upscaling_resize": 8}, 400, "upscaling_resize"),
        ({"upscaler_1": "demo-x4", "resize_mode": 1, "upscaling_resize_w": 1000}, 400, "4 times"),
    ],
)
def test_larger_images(demo_server: Server, fields: dict[str, Any], status: int, word: str) -> None:
    refused(post(demo_server, "extra-single-image", image=IMAGE, **fields), status, word)


def test_masks(demo_server: Server) -> None:
    black, small = base64_png(box_mask(64, 64, (0, 0, 0, 0))), base64_png(box_mask(32, 64, (0, 0, 9, 9)))
    refused(post(demo_server, "img2img", init_images=[IMAGE], mask=black), 400, "black")
    refused(post(demo_server, "img2img", init_images=[IMAGE], mask=small), 400, "same size")
    refused(post(demo_server, "img2img"), 400, "init_images")
    refused(
        post(demo_server, "img2img", init_images=[IMAGE], denoising_strength=0), 400, "denoising_strength"
    )


def test_scripts_that_are_off_are_taken(demo_server: Server) -> None:
    scripts = {"ADetailer": {"args": [False]}, "ControlNet": {"args": []}}
    assert post(demo_server, "txt2img", alwayson_scripts=scripts).status_code == 200


def test_options(demo_server: Server) -> None:
    refused(post(demo_server, "options", samples_save=True), 422, "prompt")
    address = f"{demo_server.url}/sdapi/v1/options"
    refused(httpx.post(address, json={"samples_save": True}), 422, "samples_save")
    refused(httpx.post(address, json={"sd_model_checkpoint": "other"}), 404, "other")


def test_unknown_paths_have_a_detail(demo_server: Server) -> None:
    refused(httpx.get(f"{demo_server.url}/sdapi/v1/artists"), 404, "openapi.json")
    refused(httpx.get(f"{demo_server.url}/sdapi/v1/txt2img"), 405, "GET")
