from __future__ import annotations

from pathlib import Path

import pytest

from .files import recipe_of

METADATA = {
    "app_version": "4.2.7",
    "generation_mode": "txt2img",
    "positive_prompt": "a fox [red] (one)",
    "negative_prompt": "blurry",
    "width": 768,
    "height": 512,
    "seed": 1861283426,
    "rand_device": "cpu",
    "cfg_scale": 7.5,
    "cfg_rescale_multiplier": 0.2,
    "steps": 30,
    "scheduler": "dpmpp_2m_k",
    "clip_skip": 0,
    "model": {"key": "k", "hash": "blake3:00", "name": "v2-1_768-ema-pruned", "base": "sd-2", "type": "main"},
    "loras": [{"model": {"name": "ink", "base": "sd-2"}, "weight": 0.75}],
}


def test_version_3_and_later(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, invokeai_metadata=METADATA, invokeai_graph="{}")
    assert recipe.fields == {
        "prompt": "a fox [red] (one)",
        "negative_prompt": "blurry",
        "rng": "cpu",
        "seed": 1861283426,
        "num_inference_steps": 30,
        "guidance_scale": 7.5,
        "guidance_rescale": 0.2,
        "width": 768,
        "height": 512,
        "sampler": "dpmpp-2m",
        "schedule": "karras",
    }
    assert recipe.notes == ()
    assert recipe.bundle == "v2-1_768-ema-pruned"
    assert [(lora.name, lora.scale) for lora in recipe.loras] == [("ink", 0.75)]


@pytest.mark.parametrize(
    ("changes", "fields", "note"),
    [
        ({"rand_device": "cuda"}, {"rng": "cuda"}, None),
        ({"scheduler": "dpmpp_3m"}, {"sampler": "dpmpp-2m", "sampler_options": {"solver_order": 3}}, None),
        ({"scheduler": "heun"}, {"sampler": "heun"}, None),
        ({"scheduler": "euler_a"}, {"sampler": "euler-a"}, "draws the noise of its steps from another seed"),
        ({"scheduler": "new"}, {}, "scheduler new is not supported"),
        ({"positive_prompt": "a fox++, (red)1.2"}, {}, "Compel's + and -"),
        ({"controlnets": [{"control_model": {}}]}, {}, "controlnets: 1 entries is not supported"),
        ({"vae": {"name": "mse"}}, {}, "vae: 1 entries is not supported"),
        ({"hrf_enabled": True, "hrf_strength": 0.45}, {}, "hrf_enabled: True is not supported"),
        ({"seamless_x": True}, {}, "seamless_x: True is not supported"),
    ],
)
def test_other_settings(changes: object, fields: dict[str, object], note: str | None, tmp_path: Path) -> None:
    assert isinstance(changes, dict)
    recipe = recipe_of(tmp_path, invokeai_metadata=METADATA | changes)
    assert fields.items() <= recipe.fields.items()
    assert any(note in said for said in recipe.notes) if note else not recipe.notes


def test_from_an_image(tmp_path: Path) -> None:
    changes = {"generation_mode": "img2img", "init_image": "a.png", "strength": 0.7}
    recipe = recipe_of(tmp_path, invokeai_metadata=METADATA | changes)
    assert recipe.inputs == {"image": None}
    assert recipe.fields["strength"] == 0.7
    changes = {"generation_mode": "inpaint"}
    assert recipe_of(tmp_path, invokeai_metadata=METADATA | changes).inputs == {
        "image": None,
        "mask_image": None,
    }


def test_version_2(tmp_path: Path) -> None:
    content = {
        "model": "stable diffusion",
        "model_weights": "stable-diffusion-2.1-768",
        "app_version": "2.3.5",
        "image": {
            "prompt": [{"prompt": "a fox [blurry, dark] at dusk", "weight": 1}],
            "steps": 50,
            "cfg_scale": 7.5,
            "threshold": 0,
            "perlin": 0,
            "height": 768,
            "width": 768,
            "seed": 42,
            "seamless": False,
            "hires_fix": False,
            "type": "txt2img",
            "postprocessing": None,
            "sampler": "ddim",
            "variations": [],
        },
    }
    recipe = recipe_of(tmp_path, sd__metadata=content, Dream='"other"')
    assert recipe.fields == {
        "prompt": "a fox at dusk",
        "negative_prompt": "blurry, dark",
        "rng": "cpu",
        "num_inference_steps": 50,
        "guidance_scale": 7.5,
        "seed": 42,
        "width": 768,
        "height": 768,
        "sampler": "ddim",
    }
    assert recipe.bundle == "stable-diffusion-2.1-768"
    assert recipe.notes == ()


def test_dream(tmp_path: Path) -> None:
    text = '"a "big" fox [blurry]" -s 50 -S 4154079880 -W 512 -H 768 -C 7.5 -A k_euler -G 0.8'
    recipe = recipe_of(tmp_path, Dream=text)
    assert recipe.fields == {
        "prompt": 'a "big" fox',
        "negative_prompt": "blurry",
        "rng": "cpu",
        "num_inference_steps": 50,
        "guidance_scale": 7.5,
        "seed": 4154079880,
        "width": 512,
        "height": 768,
        "sampler": "euler",
    }
    assert recipe.notes == (
        "sampler k_euler: versions before 2.3 had k-diffusion's noise levels, those here are diffusers'",
        "G: 0.8 is not supported and is ignored",
    )
