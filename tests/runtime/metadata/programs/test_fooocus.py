from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sd2rt.runtime import read_recipe

from .files import recipe_of

JSON = {
    "adm_guidance": "(1.5, 0.8, 0.3)",
    "base_model": "v2-1_768-ema-pruned",
    "base_model_hash": "dcd690123c",
    "full_negative_prompt": ["blurry"],
    "full_prompt": ["cinematic still a fox [red]", "a fox, best"],
    "guidance_scale": 4.0,
    "lora_combined_1": "ink : 0.1",
    "loras": [["ink", 0.1, "c1e2"]],
    "metadata_scheme": "fooocus",
    "negative_prompt": "",
    "performance": "Speed",
    "prompt": "a fox",
    "prompt_expansion": "a fox, best",
    "refiner_model": "None",
    "refiner_switch": 0.5,
    "resolution": "(896, 1152)",
    "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "seed": "7843457346",
    "sharpness": 2.0,
    "steps": 30,
    "styles": "['Fooocus V2']",
    "vae": "Default (model)",
    "version": "Fooocus v2.5.5",
}
FIELDS = {
    "prompt": r"cinematic still a fox \[red\] BREAK a fox, best",
    "negative_prompt": "blurry",
    "prompt_syntax": "a1111",
    "rng": "cpu",
    "seed": 7843457346,
    "num_inference_steps": 30,
    "guidance_scale": 4.0,
    "width": 896,
    "height": 1152,
    "sampler": "dpmpp-2m-sde",
    "schedule": "karras",
    "grid": "a1111",
}


def test_its_json(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, parameters=JSON, fooocus_scheme="fooocus")
    assert recipe.fields == FIELDS
    assert (recipe.bundle, recipe.identity) == ("v2-1_768-ema-pruned", "dcd690123c")
    assert [(lora.name, lora.scale) for lora in recipe.loras] == [("ink", 0.1)]
    assert [note.split(": ")[0] for note in recipe.notes] == [
        "Sampler dpmpp_2m_sde_gpu",
        "adm_guidance",
        "sharpness",
    ]


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_its_comment_beside_the_image(suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x9286] = json.dumps(JSON)
    exif[0x0131] = "Fooocus v2.5.5"
    exif[0x927C] = "fooocus"
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    assert read_recipe(path).fields == FIELDS


def test_its_text_in_the_form_of_automatic1111(tmp_path: Path) -> None:
    text = (
        "cinematic still a fox, best\nNegative prompt: blurry\nSteps: 30, Sampler: DPM++ 2M Karras, Seed: 5, "
        'Size: 896x1152, CFG scale: 4, Sharpness: 2, ADM Guidance: "(1.5, 0.8, 0.3)", Model: other, '
        "Model hash: 0123456789, Performance: Speed, Scheduler: karras, VAE: Default (model), Raw prompt: a fox, "
        'Raw negative prompt: , Lora hashes: "ink: c1e2, fur: 77", Lora weights: "ink: 0.5, fur: -1", '
        "Version: Fooocus v2.5.5"
    )
    recipe = recipe_of(tmp_path, parameters=text, fooocus_scheme="a1111")
    expected = {"sampler": "dpmpp-2m", "rng": "cpu", "seed": 5, "prompt": "cinematic still a fox, best"}
    assert recipe.fields == FIELDS | expected
    assert [(lora.name, lora.scale) for lora in recipe.loras] == [("ink", 0.5), ("fur", -1.0)]
    assert [note.split(": ")[0] for note in recipe.notes] == ["sharpness", "adm_guidance"]
