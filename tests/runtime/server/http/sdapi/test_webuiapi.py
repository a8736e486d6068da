"""webuiapi, AUTOMATIC1111's client, against a real server."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import webuiapi
from PIL import Image

from benchmarks.serving.server_process import Server
from sd2rt.runtime import Pipeline
from sd2rt.runtime.images.painting import Painting
from sd2rt.runtime.images.preparation import Preparation

from ..pictures import base64_png, box_mask, drawing, equal, opened, png

PROMPT = "a small red circle left of a large blue square"
SETTINGS: dict[str, Any] = {"prompt": PROMPT, "steps": 6, "seed": 3, "width": 128, "height": 128}
A1111: dict[str, Any] = {"prompt_syntax": "a1111", "sampler": "euler-a", "grid": "a1111"}
"""Meaning of the client's defaults, "Euler a" and "automatic", here."""


@pytest.fixture
def api(demo_server: Server) -> Iterator[webuiapi.WebUIApi]:
    """A client whose options are as they were at the start."""
    api = webuiapi.WebUIApi(baseurl=f"{demo_server.url}/sdapi/v1")
    before = api.get_options()
    yield api
    api.set_options(before)


@pytest.fixture(scope="module")
def pipeline(demo_folders: dict[str, Path]) -> Iterator[Pipeline]:
    with Pipeline.open(demo_folders["demo"], device="cpu") as pipeline:
        yield pipeline


def test_the_same_pixels_by_every_route(
    api: webuiapi.WebUIApi, demo_server: Server, pipeline: Pipeline
) -> None:
    plain: dict[str, Any] = {
        "num_inference_steps": 6,
        "seed": 3,
        "width": 128,
        "height": 128,
        "guidance_scale": 7.0,
    }
    expected = pipeline(PROMPT, negative_prompt="", **plain, **A1111).images[0]
    answer = api.txt2img(**SETTINGS)
    assert equal(answer.image, expected)
    openai = {name: value for name, value in plain.items() if name not in ("width", "height")}
    by_openai = httpx.post(
        f"{demo_server.url}/v1/images/generations",
        json={"prompt": PROMPT, "size": "128x128", **openai, **A1111},
        timeout=60,
    ).json()
    assert equal(opened(by_openai["data"][0]["b64_json"]), expected)
    # Without weights in the prompt, the syntax makes no difference.
    by_hf = httpx.post(
        f"{demo_server.url}/hf/demo",
        json={"inputs": PROMPT, "parameters": {**plain, "sampler": "euler-a", "grid": "a1111"}},
        timeout=60,
    )
    assert equal(opened(base64.b64encode(by_hf.content).decode()), expected)


def test_defaults_are_the_bundles(demo_server: Server, pipeline: Pipeline) -> None:
    answer = httpx.post(
        f"{demo_server.url}/sdapi/v1/txt2img", json={"prompt": PROMPT, "seed": 5}, timeout=60
    ).json()
    expected = pipeline(PROMPT, seed=5, prompt_syntax="a1111").images[0]
    assert equal(opened(answer["images"][0]), expected)


def test_info_is_text(api: webuiapi.WebUIApi) -> None:
    answer = api.txt2img(**SETTINGS, batch_size=2, n_iter=2, negative_prompt="(dark:1.2)")
    assert isinstance(answer.json["info"], str)
    assert len(answer.images) == 4
    info = answer.info
    assert info["seed"] == 3
    assert info["all_seeds"] == [3, 4, 5, 6]
    assert len(info["infotexts"]) == len(info["all_prompts"]) == 4
    assert info["infotexts"][3].startswith(f"{PROMPT}\nNegative prompt: (dark:1.2)\nSteps: 6, ")
    assert "Seed: 6, Size: 128x128" in info["infotexts"][3]
    for name, value in {
        "width": 128,
        "height": 128,
        "sampler_name": "Euler a",
        "cfg_scale": 7.0,
        "steps": 6,
        "batch_size": 2,
        "sd_model_name": "demo",
        "clip_skip": 1,
    }.items():
        assert info[name] == value
    assert len(info["sd_model_hash"]) == 10
    assert info["version"].startswith("sd2rt ")
    assert answer.parameters["prompt"] == PROMPT
    alone = api.txt2img(**SETTINGS | {"seed": 6}, negative_prompt="(dark:1.2)")
    assert equal(alone.image, answer.images[3])


def test_random_seeds_count_up_over_iterations(api: webuiapi.WebUIApi) -> None:
    seeds = api.txt2img(**SETTINGS | {"seed": -1, "steps": 1}, batch_size=2, n_iter=2).info["all_seeds"]
    assert seeds == list(range(seeds[0], seeds[0] + 4))


def test_image_to_image(api: webuiapi.WebUIApi, pipeline: Pipeline) -> None:
    image = drawing()
    answer = api.img2img(images=[image], denoising_strength=0.6, **SETTINGS)
    fields: dict[str, Any] = {
        "num_inference_steps": 6,
        "seed": 3,
        "strength": 0.6,
        "guidance_scale": 7.0,
        **A1111,
    }
    assert equal(answer.image, pipeline(PROMPT, negative_prompt="", image=image, **fields).images[0])
    assert answer.info["denoising_strength"] == 0.6
    assert answer.parameters["init_images"] is None
    wide = drawing(192, 128)
    cropped = api.img2img(images=[wide], resize_mode=1, denoising_strength=0.6, **SETTINGS)
    inner = wide.crop((32, 0, 160, 128))
    assert equal(cropped.image, pipeline(PROMPT, negative_prompt="", image=inner, **fields).images[0])


@pytest.mark.parametrize("model", ["demo-inpaint", "demo"])
@pytest.mark.parametrize("only_masked", [True, False])
def test_inpainting(
    api: webuiapi.WebUIApi, demo_folders: dict[str, Path], only_masked: bool, model: str
) -> None:
    """A result is that of the library, with the mask's own area pasted into the original."""
    image, mask = drawing(200, 150), box_mask(200, 150, (60, 40, 100, 80))
    answer = api.img2img(
        images=[image],
        mask_image=mask,
        inpaint_full_res=only_masked,
        inpaint_full_res_padding=12,
        mask_blur=3,
        denoising_strength=0.9,
        override_settings={"sd_model_checkpoint": model},
        **SETTINGS,
    )
    assert answer.info["sd_model_name"] == model
    extra = answer.info["extra_generation_params"]
    assert extra["Inpaint area"] == ("Only masked" if only_masked else "Whole picture")
    settings = Preparation(mask_blur=(3.0, 3.0), fill_masked=True, only_masked=only_masked, padding=12)
    painting = Painting(image, mask, 128, 128, settings)
    with Pipeline.open(demo_folders[model], device="cpu") as pipeline:
        painted = pipeline(
            PROMPT,
            negative_prompt="",
            image=painting.image,
            mask_image=painting.mask,
            num_inference_steps=6,
            seed=3,
            strength=0.9,
            guidance_scale=7.0,
            **A1111,
        ).images[0]
    assert equal(answer.image, painting.finish(painted))
    assert answer.image.size == ((200, 150) if only_masked else (128, 128))
    if only_masked:
        assert equal(answer.image.crop((0, 0, 50, 150)), image.crop((0, 0, 50, 150)))
        assert not equal(answer.image.crop((60, 40, 100, 80)), image.crop((60, 40, 100, 80)))


def test_an_inverted_mask(api: webuiapi.WebUIApi) -> None:
    image, mask = drawing(), box_mask(128, 128, (0, 0, 64, 128))
    answer = api.img2img(
        images=[image],
        mask_image=mask,
        mask_blur=0,
        inpainting_mask_invert=1,
        inpainting_fill=1,
        inpaint_full_res=False,
        **SETTINGS,
    )
    assert equal(answer.image.crop((0, 0, 64, 128)), image.crop((0, 0, 64, 128)))
    assert not equal(answer.image.crop((64, 0, 128, 128)), image.crop((64, 0, 128, 128)))


def test_larger_images(api: webuiapi.WebUIApi) -> None:
    image = drawing(64, 48)
    assert "demo-x4" in [each["name"] for each in api.get_upscalers()]
    assert equal(api.extra_single_image(image).image, image)
    larger = api.extra_single_image(image, upscaler_1="demo-x4", upscaling_resize=4)
    assert larger.image.size == (256, 192)
    assert larger.info == "<p>256x192</p>"
    twice = api.extra_single_image(image, upscaler_1="demo-x4", upscaling_resize=2)
    assert twice.image.size == (128, 96)
    several = api.extra_batch_images(
        [image, image.rotate(180)],
        upscaler_1="demo-x4",
        resize_mode=1,
        upscaling_resize_w=100,
        upscaling_resize_h=100,
    )
    assert [each.size for each in several.images] == [(100, 100)] * 2


def test_settings_of_a_picture(api: webuiapi.WebUIApi, demo_server: Server) -> None:
    made = api.txt2img(**SETTINGS)
    assert api.png_info(made.image).info == made.info["infotexts"][0]
    read = httpx.post(f"{demo_server.url}/sdapi/v1/png-info", json={"image": made.json["images"][0]}).json()
    assert read["info"] == made.info["infotexts"][0]
    assert read["parameters"]["Prompt"] == PROMPT
    assert read["parameters"]["Size-1"] == "128"
    assert json.loads(read["items"]["sd2rt"])["seed"] == 3
    for file_format in ("jpeg", "webp"):
        sent = httpx.post(
            f"{demo_server.url}/sdapi/v1/txt2img",
            json={**SETTINGS, "override_settings": {"samples_format": file_format}},
            timeout=60,
        ).json()
        assert opened(sent["images"][0]).format == file_format.upper()
        found = httpx.post(
            f"{demo_server.url}/sdapi/v1/png-info",
            json={"image": f"data:image/{file_format};base64,{sent['images'][0]}"},
        ).json()
        assert found["info"] == json.loads(sent["info"])["infotexts"][0]


def test_lists(api: webuiapi.WebUIApi) -> None:
    assert {"Euler a", "DPM++ 2M", "DDIM", "UniPC"} <= set(api.util_get_sampler_names())
    assert {"automatic", "karras", "exponential"} <= set(api.util_get_scheduler_names())
    models = api.get_sd_models()
    assert {"demo", "demo-inpaint", "demo-x4"} <= {model["model_name"] for model in models}
    assert all({"title", "hash", "sha256", "filename", "config"} <= model.keys() for model in models)
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_memory()["ram"]["total"] > 0
    assert api.get_cmd_flags()["api"] is True
    for nothing in (
        api.get_sd_vae,
        api.get_loras,
        api.get_hypernetworks,
        api.get_face_restorers,
        api.get_realesrgan_models,
        api.get_prompt_styles,
        api.get_latent_upscale_modes,
    ):
        assert nothing() == []
    for quiet in (api.refresh_checkpoints, api.interrupt, api.skip):
        assert quiet() == {}


@pytest.mark.parametrize("name", ["DPM++ 2M", "DDIM", "Heun", "LCM", "DPM++ 2M Karras"])
def test_samplers_by_their_names(api: webuiapi.WebUIApi, name: str) -> None:
    answer = api.txt2img(**SETTINGS | {"steps": 2}, sampler_name=name)
    assert answer.info["sampler_name"] == name
    assert answer.image.size == (128, 128)


def test_an_idle_server(api: webuiapi.WebUIApi) -> None:
    progress = api.get_progress()
    assert progress["progress"] == 0.0
    assert progress["state"]["job_count"] == 0
    api.util_wait_for_ready(0.1)


def test_checkpoints(api: webuiapi.WebUIApi) -> None:
    titles = api.util_get_model_names()
    assert api.util_get_current_model() in titles
    api.util_set_model("demo-inpaint")
    current = api.util_get_current_model()
    assert current.startswith("demo-inpaint [")
    # It paints in images only: a prompt alone goes to another, and the answer says so.
    info = api.txt2img(**SETTINGS).info
    assert info["sd_model_name"] == "demo"
    assert "demo was used" in info["sd2rt"]["warnings"][0]
    api.set_options({"sd_model_checkpoint": "demo", "CLIP_stop_at_last_layers": 2})
    assert api.txt2img(**SETTINGS).info["clip_skip"] == 2


def test_a_data_address_is_an_image(demo_server: Server) -> None:
    for text in (base64_png(drawing()), f"data:image/png;base64,{base64_png(drawing())}"):
        answer = httpx.post(
            f"{demo_server.url}/sdapi/v1/img2img",
            json={**SETTINGS, "init_images": [text], "include_init_images": True},
            timeout=60,
        ).json()
        assert answer["parameters"]["init_images"] == [text]
        assert isinstance(opened(answer["images"][0]), Image.Image)
    assert png(drawing()) not in demo_server.log.encode()
