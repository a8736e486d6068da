"""Formats, metadata and standard output of `sd2rt run`, read back by `--from`."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd2rt import read_recipe

from ..conftest import Command, Refused

FAST = ("--steps", "2", "--threads", "1", "--seed", "5")


pytestmark = pytest.mark.usefixtures("here", "quick_opening")


@pytest.mark.parametrize(
    ("words", "name", "kind"),
    [
        (("-o", "a.jpg"), "a.jpg", "JPEG"),
        (("-o", "a.JPEG", "--quality", "50"), "a.JPEG", "JPEG"),
        (("-o", "a.webp"), "a.webp", "WEBP"),
        (("--format", "jpeg"), "5.jpg", "JPEG"),
        (("-o", "folder", "--format", "webp", "--quality", "30"), "folder/5.webp", "WEBP"),
        (("--format", "png"), "5.png", "PNG"),
    ],
)
def test_formats(sd2rt: Command, small_bundle: Path, words: tuple[str, ...], name: str, kind: str) -> None:
    said = sd2rt("run", small_bundle, "a füchs", *FAST, *words)
    assert (said.code, said.out) == (0, f"{name}\n"), said.err
    with Image.open(name) as image:
        assert (image.format, image.size) == (kind, (64, 64))
    recipe = read_recipe(name)
    assert (recipe.fields["prompt"], recipe.fields["seed"]) == ("a füchs", 5)
    again = sd2rt("run", small_bundle, "--from", name, "--threads", "1", "-o", "again.png", "--json")
    assert json.loads(again.out)["seed"] == 5


def test_quality_matters(sd2rt: Command, small_bundle: Path, here: Path) -> None:
    for quality in ("5", "95"):
        assert sd2rt("run", small_bundle, "a", *FAST, "-o", f"{quality}.jpg", "--quality", quality).code == 0
    assert (here / "5.jpg").stat().st_size < (here / "95.jpg").stat().st_size


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_no_metadata(sd2rt: Command, small_bundle: Path, here: Path, refused: Refused, name: str) -> None:
    assert sd2rt("run", small_bundle, "secret", *FAST, "-o", name, "--no-metadata").code == 0
    assert b"secret" not in (here / name).read_bytes()
    assert "contains no generation settings" in sd2rt("run", "--from", name).err


class Bytes(io.TextIOWrapper):
    def __init__(self, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), "utf-8")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def test_standard_output(sd2rt: Command, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sd2rt("run", small_bundle, "a", *FAST, "-o", "a.png")
    stream = Bytes()
    monkeypatch.setattr(sys, "stdout", stream)
    assert sd2rt("run", small_bundle, "a", *FAST, "-o", "-").code == 0
    data = stream.buffer.getvalue()  # type: ignore[attr-defined]
    assert data == Path("a.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--json",), "--json and --output - both write to standard output"),
        (("--count", "2"), "--output - writes one image, and there are 2"),
    ],
)
def test_standard_output_for_one_image(
    refused: Refused, small_bundle: Path, words: tuple[str, ...], said: str
) -> None:
    assert said in refused(2, "run", small_bundle, "a", *FAST, "-o", "-", *words)


def test_no_image_on_a_terminal(sd2rt: Command, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Bytes(terminal=True))
    said = sd2rt("run", small_bundle, "a", *FAST, "-o", "-")
    assert (said.code, "standard output is a terminal" in said.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-o", "a.png", "--format", "webp"), "a.png ends in .png, but the format is webp"),
        (("--quality", "90"), "quality is for jpeg and webp"),
        (("-o", "a.png", "--quality", "90"), "quality is for jpeg and webp"),
        (("--format", "jpeg", "--quality", "101"), "Invalid value for '--quality'"),
        (("--format", "gif"), "Invalid value for '--format'"),
        (("--preview", "kitty"), "--preview kitty draws on a terminal"),
        (("--preview", "a.png"), "neither a folder, kitty nor none"),
        (("--size", "64x64", "--width", "64"), "--size is given with --width or --height"),
        (("--lora-dir", "nowhere"), "--lora-dir nowhere is not a folder"),
        (("--cfg", "nan"), "guidance_scale is nan"),
    ],
)
def test_options_that_contradict(
    refused: Refused, small_bundle: Path, words: tuple[str, ...], said: str
) -> None:
    assert said in refused(2, "run", small_bundle, "a", *FAST, *words)


def test_random_seed(sd2rt: Command, small_bundle: Path) -> None:
    words = ("run", small_bundle, "a", *FAST, "--seed", "-1", "--json")
    first, second = (json.loads(sd2rt(*words).out)["seed"] for _ in range(2))
    assert first != second
    sd2rt("run", small_bundle, "a", *FAST, "-o", "a.png")
    again = json.loads(sd2rt("run", small_bundle, "--from", "a.png", "--seed", "-1", "--json").out)
    assert again["seed"] != 5


def made(sd2rt: Command, *words: str | Path) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    said = sd2rt("run", *words, "--json")
    assert said.code == 0, said.err
    facts = json.loads(said.out)
    return facts, np.asarray(Image.open(facts["path"]))


def test_names_of_other_programs(sd2rt: Command, small_bundle: Path) -> None:
    _, own = made(
        sd2rt, small_bundle, "a", *FAST, *("--sampler", "dpmpp-2m", "--schedule", "karras", "--guidance", "3")
    )
    for words in (
        ("--sampler", "DPM++ 2M Karras", "--cfg", "3"),
        ("--sampler-name", "DPM++ 2M", "--schedule-type", "Karras", "--cfg_scale", "3"),
        ("--sampler", "k_dpmpp_2m_karras", "--guidance_scale", "3", "--width", "64", "-H", "64"),
    ):
        facts, image = made(sd2rt, small_bundle, "a", *FAST, *words)
        assert (facts["sampler"], facts["schedule"], facts["guidance_scale"]) == ("dpmpp-2m", "karras", 3.0)
        np.testing.assert_array_equal(image, own)


def test_near_matches(refused: Refused, small_bundle: Path) -> None:
    words = ("run", small_bundle, "a", *FAST)
    assert "did you mean euler?" in refused(2, *words, "--sampler", "eular")
    assert "did you mean karras?" in refused(2, *words, "--schedule", "karas")
    assert "there is no option --stepz: did you mean --steps" in refused(2, *words, "--stepz", "3")
    assert "the prompt is an argument" in refused(2, "run", "--prompt", "a")
    assert "Did you mean 'run'?" in refused(2, "rnu", "a")


def test_previews(sd2rt: Command, small_bundle: Path, here: Path) -> None:
    _, plain = made(sd2rt, small_bundle, "a", *FAST)
    facts, image = made(sd2rt, small_bundle, "a", *FAST, "--count", "1", "--preview", "rough")
    np.testing.assert_array_equal(image, plain)
    with Image.open(here / "rough" / "5.png") as picture:
        assert picture.size == (8, 8)
    assert facts["seed"] == 5
    made(sd2rt, small_bundle, "a", *FAST, "--preview", "none")


def test_precision_of_the_bundle(sd2rt: Command, refused: Refused, small_bundle: Path) -> None:
    text = refused(2, "run", small_bundle, "a", *FAST, "--precision", "fp16")
    assert "--precision fp16 is chosen when a bundle is built, and small is fp32: build one with" in text
    _, own = made(sd2rt, small_bundle, "a", *FAST)
    _, asked = made(sd2rt, small_bundle, "a", *FAST, "--precision", "fp32")
    np.testing.assert_array_equal(own, asked)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SD2RT_DEVICE", "tpu", "'tpu' is not a device"),
        ("SD2RT_BACKEND", "magic", "(env var: 'SD2RT_BACKEND')"),
        ("SD2RT_THREADS", "0", "(env var: 'SD2RT_THREADS')"),
        ("SD2RT_PRECISION", "int8", "(env var: 'SD2RT_PRECISION')"),
    ],
)
def test_environment(
    refused: Refused, small_bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    assert said in refused(2, "run", small_bundle, "a", "--steps", "1")


def test_options_come_before_the_environment(
    sd2rt: Command, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SD2RT_DEVICE", "tpu")
    assert sd2rt("run", small_bundle, "a", *FAST, "--device", "cpu").code == 0


def test_help_shows_the_environment(sd2rt: Command) -> None:
    text = " ".join(sd2rt("run", "--help").out.split())
    for name in ("SD2RT_DEVICE", "SD2RT_BACKEND", "SD2RT_PRECISION", "SD2RT_THREADS"):
        assert f"[env var: {name}" in text
