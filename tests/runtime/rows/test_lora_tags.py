from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sd2rt.engines.errors import RequestError
from sd2rt.engines.weights.initializers import Weights
from sd2rt.runtime.rows.lora_tags import LoraFolder

from ...lora_files import LINEAR, draw, write
from ..conftest import Command, Refused

FAST = ("--steps", "2", "--threads", "1", "--seed", "5")


pytestmark = pytest.mark.usefixtures("here", "quick_opening")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("toy", "inner/other"):
        (tmp_path / "loras" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "loras" / f"{name}.safetensors").write_bytes(b"")
    return tmp_path / "loras"


@pytest.mark.parametrize(
    ("prompt", "text", "words"),
    [
        ("a fox", "a fox", []),
        ("a <lora:toy:0.8> fox", "a  fox", ["toy:0.8"]),
        ("a fox<lora:toy>", "a fox", ["toy:1.0"]),
        ("<lora:toy:0.5:2>a", "a", ["toy:2.0:0.5"]),
        ("<lora:toy:te=0.5>a<lora:other:unet=0>", "a", ["toy:0.5", "inner/other:0.0:1.0"]),
        ("<lyco:toy.safetensors:-1>a <lora:other:2>", "a", ["toy:-1.0", "inner/other:2.0"]),
    ],
)
def test_tags(folder: Path, prompt: str, text: str, words: list[str]) -> None:
    expected = [
        f"{folder / name}.safetensors:{scale}" for name, scale in (word.split(":", 1) for word in words)
    ]
    assert LoraFolder(str(folder)).taken_from(prompt) == (text, tuple(expected))


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("<lora:toi:1>", "no LoRA is named toi in .*: did you mean toy"),
        ("<lora:../toy:1>", "no LoRA is named"),
        ("<lora:toy:x>", "whose scale is not one number"),
        ("<lora:toy:1:2:3>", "whose scale is not one number"),
        ("<lora:toy:x=1>", "whose scale is not one number, or one each for text encoder and UNet"),
        ("<lora:toy:nan>", "whose scale is not one number"),
        ("<hypernet:toy:1>", "hypernetworks are not supported"),
    ],
)
def test_tags_that_are_refused(folder: Path, prompt: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        LoraFolder(str(folder)).taken_from(prompt)


def test_loras_of_prompts(
    sd2rt: Command,
    refused: Refused,
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "loras").mkdir()
    file = tmp_path / "loras" / "toy.safetensors"
    shapes = {
        network: Weights(small_bundle / part / "initializers.json").shapes()
        for network, part in (("unet", "denoiser"), ("text_encoder", "text_encoder"))
    }
    write(file, "kohya", draw(LINEAR, shapes, seed=1))
    a1111 = ("--prompt-syntax", "a1111", "--lora-dir", tmp_path / "loras")
    sd2rt(
        "run",
        small_bundle,
        "a fox",
        *FAST,
        "--prompt-syntax",
        "a1111",
        "--lora",
        f"{file}:0.8",
        "-o",
        "a.png",
    )
    said = sd2rt("run", small_bundle, "a fox<lora:toy:0.8>", *FAST, *a1111, "--json", "-o", "b.png")
    assert said.code == 0, said.err
    assert [(lora["name"], lora["scale"]) for lora in json.loads(said.out)["loras"]] == [("toy", 0.8)]
    images = [np.asarray(Image.open(name)) for name in ("a.png", "b.png")]
    np.testing.assert_array_equal(images[0], images[1])
    # A recipe's LoRAs are found in the folder too.
    again = sd2rt("run", small_bundle, "--from", "b.png", *a1111[2:], "--threads", "1", "-o", "c.png")
    assert (again.code, again.err) == (0, "")
    np.testing.assert_array_equal(images[0], np.asarray(Image.open("c.png")))
    # Plain syntax warns; a1111 syntax without a folder is refused.
    assert "which plain syntax reads as words" in sd2rt("run", small_bundle, "<lora:toy:1>", *FAST).err
    # One set for a command.
    monkeypatch.setattr(sys, "stdin", io.StringIO("a<lora:toy:0.8>\nb<lora:toy:0.5>\nc\nd<lora:toy:0.8>\n"))
    said = sd2rt("run", small_bundle, "-", *FAST, *a1111, "-o", "out", "--json")
    assert (said.code, len(said.out.splitlines())) == (2, 2)
    assert said.err.count("its LoRAs differ from the first prompt's") == 3
    assert "2 lines could not be drawn" in said.err


def test_tags_without_a_folder(refused: Refused, small_bundle: Path) -> None:
    said = refused(2, "run", small_bundle, "a <lora:toy:1>", *FAST, "--prompt-syntax", "a1111")
    assert "--lora-dir" in said
