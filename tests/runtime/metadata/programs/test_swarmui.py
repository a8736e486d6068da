from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sd2rt.runtime import Recipe, read_recipe

from .files import recipe_of

# The example of its description of the format, with settings of SD2.
PARAMETERS = {
    "prompt": "a photo of a cat",
    "model": "OfficialStableDiffusion/v2-1_768-ema-pruned",
    "seed": 1,
    "steps": 20,
    "cfgscale": 7.5,
    "aspectratio": "1:1",
    "width": 768,
    "height": 768,
    "sampler": "dpmpp_2m",
    "scheduler": "karras",
    "automaticvae": True,
    "negativeprompt": "blurry",
    "swarm_version": "0.9.3.1",
}
FIELDS = {
    "prompt": "a photo of a cat",
    "negative_prompt": "blurry",
    "prompt_syntax": "a1111",
    "rng": "cpu",
    "seed": 1,
    "num_inference_steps": 20,
    "guidance_scale": 7.5,
    "width": 768,
    "height": 768,
    "sampler": "dpmpp-2m",
    "schedule": "karras",
    "grid": "a1111",
}


def swarm(folder: Path, **changes: Any) -> Recipe:
    content = {"sui_image_params": PARAMETERS | changes, "sui_extra_data": {"date": "2025-01-25"}}
    return recipe_of(folder, parameters=json.dumps(content, indent=2))


def test_its_example(tmp_path: Path) -> None:
    recipe = swarm(tmp_path)
    assert recipe.fields == FIELDS
    assert recipe.bundle == "v2-1_768-ema-pruned"
    assert [note[:16] for note in recipe.notes] == ["SwarmUI starts f"]


def test_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    text = json.dumps({"sui_image_params": PARAMETERS})
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-le")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_recipe(tmp_path / "a.jpg").fields == FIELDS


def test_numbers_as_texts_and_its_defaults(tmp_path: Path) -> None:
    texts = {"seed": "1", "steps": "20", "cfgscale": "7.5", "width": "768", "height": "768"}
    content = {key: value for key, value in PARAMETERS.items() if key not in ("sampler", "scheduler")} | texts
    recipe = recipe_of(tmp_path, parameters={"sui_image_params": content})
    assert recipe.fields == FIELDS | {"sampler": "euler", "schedule": "normal"}


@pytest.mark.parametrize(("creativity", "made"), [(0.6, 12), (0.33, 7), (1.0, 20), (0.625, 12)])
def test_start_from_an_image(creativity: float, made: int, tmp_path: Path) -> None:
    """It begins at step round(steps x (1 - creativity)), halves to the even one."""
    recipe = swarm(tmp_path, initimage="...", initimagecreativity=creativity)
    assert recipe.inputs == {"image": None}
    strength = recipe.fields["strength"]
    assert 1 + int(min(strength, 0.999) * 20) == made
    assert recipe.fields["num_inference_steps"] == 20


def test_loras_embeddings_variation_and_tags(tmp_path: Path) -> None:
    recipe = swarm(
        tmp_path,
        prompt="a <embed:fur> fox <lora:ink:0.4> <segment:face> (red:1.2)",
        loras=["style/fox.safetensors", "snow"],
        loraweights="0.8,1",
        loratencweights="0.5,1",
        variationseed=5,
        variationseedstrength=0.3,
        clipstopatlayer=-3,
        seamlesstileable="true",
    )
    assert recipe.fields["prompt"] == "a fur fox   (red:1.2)"
    assert [(lora.name, lora.scale) for lora in recipe.loras] == [("ink", 0.4), ("fox", 0.8), ("snow", 1.0)]
    assert [lora.text_scale for lora in recipe.loras] == [None, 0.5, None]
    assert list(recipe.embeddings) == ["fur"]
    expected = {"variation_seed": 5, "variation_strength": 0.3, "clip_skip": 1}
    assert expected.items() <= recipe.fields.items()
    notes = " ".join(recipe.notes)
    for said in (
        "<segment:...>",
        "seamlesstileable: true is not supported",
        "weights of the prompt",
        "the variation only",
    ):
        assert said in notes
