"""What sd2rt run does with LoRAs, and what pictures tell of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from sd2rt.engines.errors import RequestError
from sd2rt.engines.lora.file import read_lora
from sd2rt.engines.weights.initializers import Weights
from sd2rt.runtime import Pipeline
from sd2rt.runtime.prompts.textual_inversion import load_embedding

from ...lora_files import LINEAR, draw, write
from ..conftest import Command, Refused

FAST = ("--steps", "2", "--threads", "1", "--seed", "1")

pytestmark = pytest.mark.usefixtures("quick_opening", "here")


@pytest.fixture
def files(small_bundle: Path, here: Path) -> list[str]:
    """Two LoRAs for the small bundle; the second has a colon in its name."""
    shapes = {
        network: Weights(small_bundle / part / "initializers.json").shapes()
        for network, part in (("unet", "denoiser"), ("text_encoder", "text_encoder"))
    }
    names = ["toy.safetensors", "a:b.safetensors"]
    for seed, name in enumerate(names):
        write(Path(name), "kohya", draw(LINEAR, shapes, seed=seed))
    return names


def made(sd2rt: Command, *words: Any) -> tuple[dict[str, Any], np.ndarray]:
    said = sd2rt("run", *words, "--json", "-q")
    assert said.code == 0, said.err
    facts = json.loads(said.out)
    with Image.open(facts["path"]) as image:
        assert json.loads(image.info["sd2rt"]).items() <= facts.items()
        return facts, np.asarray(image, np.int16)


def test_pictures_with_loras(sd2rt: Command, small_bundle: Path, files: list[str]) -> None:
    facts, plain = made(sd2rt, small_bundle, "a fox", *FAST)
    assert "loras" not in facts
    facts, image = made(sd2rt, small_bundle, "a fox", *FAST, "--lora", f"{files[0]}:0.8", "--lora", files[1])
    digests = [read_lora(name).sha256[:12] for name in files]
    assert facts["loras"] == [
        {"name": "toy", "scale": 0.8, "sha256": digests[0]},
        {"name": "a:b", "scale": 1.0, "sha256": digests[1]},
    ]
    assert np.abs(image - plain).max() > 1
    _, other = made(sd2rt, small_bundle, "a fox", *FAST, "--lora", files[1], "--lora", f"{files[0]}:0.8")
    np.testing.assert_array_equal(other, image)
    _, again = made(sd2rt, small_bundle, "a fox", *FAST, "--lora", f"{files[0]}:0")
    np.testing.assert_array_equal(again, plain)


def test_a_lora_is_asked_for_again(sd2rt: Command, small_bundle: Path, files: list[str]) -> None:
    word = f"{files[0]}:0.8"
    first = sd2rt("run", small_bundle, "a fox", *FAST, "--lora", word, "-o", "first.png")
    assert first.code == 0, first.err
    again = ("run", "--from", "first.png", small_bundle, "--threads", "1", "-o", "second.png")
    said = sd2rt(*again, "--lora", word)
    assert (said.code, said.err) == (0, "")
    with Image.open("first.png") as one, Image.open("second.png") as two:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
    digest = read_lora(files[0]).sha256[:12]
    assert sd2rt(*again).err == (
        f"sd2rt: note: the LoRA toy ({digest}) is not loaded: add its file with --lora FILE:0.8\n"
    )
    said = sd2rt(*again, "--lora", f"{files[0]}:0.5")
    assert said.err == "sd2rt: note: the LoRA toy has scale 0.5, but 0.8 was used originally\n"
    Path(files[0]).write_bytes(Path(files[1]).read_bytes())
    said = sd2rt(*again, "--lora", word)
    assert said.err == "sd2rt: note: the LoRA toy is a different file from the one used originally\n"


def test_two_scales(sd2rt: Command, small_bundle: Path, files: list[str]) -> None:
    """The same as two files, one with the UNet's layers and one with the text encoder's; ``--from`` reads it back."""
    tensors = load_file(files[0])
    for prefix in ("lora_unet", "lora_te"):
        save_file(
            {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)},
            f"{prefix}.safetensors",
        )
    command = (small_bundle, "a fox", *FAST)
    facts, image = made(sd2rt, *command, "--lora", f"{files[0]}:0.8:-0.4", "-o", "first.png")
    _, apart = made(
        sd2rt, *command, "--lora", "lora_unet.safetensors:0.8", "--lora", "lora_te.safetensors:-0.4"
    )
    np.testing.assert_array_equal(image, apart)
    _, one = made(sd2rt, *command, "--lora", f"{files[0]}:0.8")
    assert np.abs(image - one).max() > 1
    digest = read_lora(files[0]).sha256[:12]
    assert facts["loras"] == [{"name": "toy", "scale": 0.8, "text_scale": -0.4, "sha256": digest}]
    again = ("run", "--from", "first.png", small_bundle, "--threads", "1", "-o", "second.png")
    said = sd2rt(*again, "--lora-dir", ".")
    assert (said.code, said.err) == (0, "")
    with Image.open("first.png") as first, Image.open("second.png") as second:
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
    assert f"LoRA toy ({digest}) is not loaded: add its file with --lora FILE:0.8:-0.4" in sd2rt(*again).err
    said = sd2rt(*again, "--lora", f"{files[0]}:0.8")
    assert said.err == "sd2rt: note: the LoRA toy has scale 0.8, but 0.8:-0.4 was used originally\n"
    with Pipeline.open(small_bundle, threads=1) as pipe:
        lora = pipe.load_lora(files[0], 0.8, text_scale=-0.4)
        assert (lora.scale, lora.text_scale) == (0.8, -0.4)
        (result,) = pipe("a fox", num_inference_steps=2, seed=1).images
    np.testing.assert_array_equal(np.asarray(result, np.int16), image)


@pytest.mark.parametrize("key", ["string_to_param.*", "emb_params", "vectors"])
def test_embeddings_in_a_lora(sd2rt: Command, small_bundle: Path, files: list[str], key: str) -> None:
    """A LoRA's embeddings are those of files of their own, as long as it is loaded."""
    tensors = load_file(files[0])
    vectors = np.random.default_rng(2).standard_normal((2, 32)).astype(np.float32)
    save_file({"<toy>": vectors}, "alone.safetensors")
    save_file(tensors | {f"bundle_emb.<toy>.{key}": vectors}, "both.safetensors")
    command = (small_bundle, "a <toy> in the snow", *FAST)
    expected = made(sd2rt, *command, "--lora", f"{files[0]}:0.5", "--embedding", "alone.safetensors")[1]
    facts, image = made(sd2rt, *command, "--lora", "both.safetensors:0.5", "-o", "first.png")
    np.testing.assert_array_equal(image, expected)
    assert facts["embeddings"] == {"<toy>": facts["loras"][0]["sha256"]}
    said = sd2rt("run", *command, "--lora", "both.safetensors")
    assert (
        said.err
        == "sd2rt: note: the LoRA both holds embeddings too: prompts use them by their names, <toy>\n"
    )
    # As an embedding alone.
    said = sd2rt("run", *command, "--embedding", "both.safetensors", "-o", "third.png", "--json")
    assert list(json.loads(said.out)["embeddings"]) == ["<toy>"]
    with Pipeline.open(small_bundle, threads=1) as pipe:
        pipe.load_lora("both.safetensors", 0.5)
        (result,) = pipe("a <toy> in the snow", num_inference_steps=2, seed=1).images
        np.testing.assert_array_equal(np.asarray(result, np.int16), expected)
        pipe.unload_lora()
        assert not pipe.embeddings
        pipe.load_embedding("alone.safetensors")
        with pytest.raises(RequestError, match="an embedding named '<toy>' is already loaded"):
            pipe.load_lora("both.safetensors", 0.5)
        assert not pipe.loras
        assert len(pipe.embeddings) == 1


def test_embeddings_in_a_lora_that_are_refused(refused: Refused, small_bundle: Path) -> None:
    vectors = np.ones((2, 32), np.float32)
    command = ("run", small_bundle, "a one", *FAST)
    save_file({f"bundle_emb.{name}.emb_params": vectors for name in ("<one>", "<two>")}, "two.safetensors")
    said = refused(2, *command, "--embedding", "two.safetensors")
    assert "holds the embeddings <one>, <two>: give the name of one" in said
    assert load_embedding("two.safetensors", "<two>", allow_pickle=False).token == "<two>"
    save_file({"bundle_emb.<one>.emb_params": vectors[:, :5].copy()}, "narrow.safetensors")
    assert "vectors of width 5" in refused(2, *command, "--lora", "narrow.safetensors")
    save_file({"bundle_emb..emb_params": vectors}, "unnamed.safetensors")
    assert "'' cannot be the token of an embedding" in refused(2, *command, "--lora", "unnamed.safetensors")


def test_loras_that_are_refused(
    sd2rt: Command, refused: Refused, small_bundle: Path, small_upscaler_bundle: Path, files: list[str]
) -> None:
    command = ("run", small_bundle, "a fox", *FAST)
    assert refused(2, *command, "--lora", "none.safetensors") == (
        "none.safetensors cannot be read: No such file or directory"
    )
    assert "is nan: use a finite number" in refused(2, *command, "--lora", f"{files[0]}:nan")
    said = refused(2, *command, "--lora", files[0], "--lora", files[0])
    assert said == f"two LoRAs are named '{files[0]}': rename one of them, or omit it"
    said = refused(2, "run", small_upscaler_bundle, "a fox", "--image", "x.png", "--lora", "none.safetensors")
    assert "x.png" in said or "none.safetensors" in said


@pytest.mark.parametrize("option", ["prompt", "--negative"])
@pytest.mark.parametrize("named", ["<lora:toy:0.8>", "<lyco:toy>", "<hypernet:toy:1>"])
def test_a_prompt_names_no_files(
    sd2rt: Command, refused: Refused, small_bundle: Path, option: str, named: str
) -> None:
    words = (f"a fox {named}",) if option == "prompt" else ("a fox", option, named)
    said = refused(2, "run", small_bundle, *words, "--prompt-syntax", "a1111")
    assert said == (
        f"the prompt contains {named}, but prompts cannot load files: remove it, "
        "and load the LoRA with --lora FILE:SCALE or load_lora(), or name its folder with --lora-dir"
    )
    # Where prompts are read as diffusers reads them that is text, as it is there.
    assert sd2rt("run", small_bundle, *words, *FAST, "-q").code == 0
