"""Bodies in the shape that chat front ends send, written for this test."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from benchmarks.serving.server_process import Server

from ..pictures import opened

OPEN_WEBUI = {
    "prompt": "a red circle",
    "batch_size": 2,
    "width": 64,
    "height": 64,
    "steps": 2,
    "negative_prompt": "dark",
}
SILLY_TAVERN = {
    "url": "http://192.168.0.7:7860/secret-path",
    "auth": "someone:hunter2",
    "prompt": "a red circle",
    "negative_prompt": "dark",
    "sampler_name": "DPM++ 2M",
    "scheduler": "karras",
    "steps": 2,
    "cfg_scale": 7,
    "width": 64,
    "height": 64,
    "restore_faces": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 2,
    "denoising_strength": 0.7,
    "hr_second_pass_steps": 0,
    "override_settings": {"CLIP_stop_at_last_layers": 1},
    "override_settings_restore_afterwards": True,
    "clip_skip": 1,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}
PLUGIN = {
    "prompt": "a red circle, (best quality:1.2)",
    "negative_prompt": "",
    "seed": -1,
    "steps": 2,
    "cfg_scale": 7,
    "width": 64,
    "height": 64,
    "sampler_index": "Euler a",
    "styles": [],
    "n_iter": 1,
    "tiling": False,
    "s_noise": 1,
    "script_args": [],
    "subseed_strength": 0,
    "eta": None,
}


@pytest.mark.parametrize("body", [OPEN_WEBUI, SILLY_TAVERN, PLUGIN])
def test_images(demo_server: Server, body: dict[str, Any]) -> None:
    # open-webui sends an empty header where no name and password are set.
    answer = httpx.post(
        f"{demo_server.url}/sdapi/v1/txt2img", json=body, headers={"authorization": ""}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert len(found["images"]) == body.get("batch_size", 1)
    assert opened(found["images"][0]).size == (64, 64)
    assert json.loads(found["info"])["seed"] >= 0
    for secret in ("192.168.0.7", "hunter2"):
        assert secret not in answer.text
        assert secret not in demo_server.log


def test_no_images_if_none_are_wanted(demo_server: Server) -> None:
    answer = httpx.post(
        f"{demo_server.url}/sdapi/v1/txt2img", json={**OPEN_WEBUI, "send_images": False}, timeout=60
    ).json()
    assert answer["images"] == []


def test_options_are_sent_back_as_they_came(demo_server: Server) -> None:
    """open-webui sets a checkpoint so, and asks for it again."""
    address = f"{demo_server.url}/sdapi/v1/options"
    options = httpx.get(address).json()
    title = httpx.get(f"{demo_server.url}/sdapi/v1/sd-models").json()[1]["title"]
    answer = httpx.post(address, json={**options, "sd_model_checkpoint": title})
    assert answer.status_code == 200, answer.text
    assert httpx.get(address).json()["sd_model_checkpoint"] == title
    httpx.post(address, json=options)


def test_a_checkpoint_is_waited_for(demo_server: Server) -> None:
    """SillyTavern sets a checkpoint, then asks until nothing runs."""
    answer = httpx.post(f"{demo_server.url}/sdapi/v1/options", json={"sd_model_checkpoint": "demo"})
    assert answer.status_code == 200
    progress = httpx.get(f"{demo_server.url}/sdapi/v1/progress").json()
    assert (progress["progress"], progress["state"]["job_count"]) == (0, 0)
