"""Text of manifests, images, checkpoints and paths on the terminal: visible characters only, whatever it holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from sd2rt.engines.bundle.manifest import MANIFEST
from sd2rt.runtime.metadata.recipe import A1111_CHUNK, CHUNK

from ..conftest import Command

HOSTILE = "\x1b[31m\x9b2J\x85\r\n\u2028\u202e\u2066\u200b\x7f\x07x"
FAST = ("--steps", "1", "--threads", "1", "--seed", "5", "-o", "images")

pytestmark = pytest.mark.usefixtures("here", "quick_opening")


def assert_visible(text: str) -> None:
    assert [character for character in text if not character.isprintable() and character != "\n"] == []


def strings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all texts of a JSON value."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from strings(item, (*path, key))
    elif isinstance(value, str):
        yield path


def changed(content: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    content = json.loads(json.dumps(content))
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = change(parent[path[-1]])
    return content


@pytest.fixture
def copy(small_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_bundle, tmp_path / "copy"))


def test_any_text_of_a_manifest(sd2rt: Command, copy: Path) -> None:
    content = json.loads((copy / MANIFEST).read_text())
    content["engines"] = []
    # It would hide every other check.
    del content["checksum"]
    codes = set()
    # Files and tensors of parts are alike; all their other texts are changed.
    paths = [path for path in strings(content) if path[0] != "parts" or path[1] == "text_encoder"]
    assert len(paths) > 40
    for path in paths:
        (copy / MANIFEST).write_text(json.dumps(changed(content, path, lambda text: text + HOSTILE)))
        said = sd2rt("inspect", copy)
        codes.add(said.code)
        assert said.code in (0, 3), path
        assert said.err.count("\n") == (said.code != 0), path
        assert_visible(said.out + said.err)
    assert codes == {0, 3}


def test_any_key_of_a_manifest(sd2rt: Command, copy: Path) -> None:
    content = json.loads((copy / MANIFEST).read_text())
    del content["checksum"]
    for path in (
        (),
        ("noise",),
        ("exporter",),
        ("tasks",),
        ("source", "files"),
        ("parts",),
        ("parts", "denoiser"),
    ):
        changed_content = changed({"root": content}, ("root", *path), lambda item: {**item, HOSTILE: "1"})[
            "root"
        ]
        (copy / MANIFEST).write_text(json.dumps(changed_content))
        said = sd2rt("inspect", copy)
        assert said.code in (0, 3)
        assert_visible(said.out + said.err)


def picture(path: Path, **chunks: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for key, text in chunks.items():
        info.add_itxt(key, text)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path, pnginfo=info)
    return path


def test_any_text_of_a_recipe(sd2rt: Command, small_bundle: Path, tmp_path: Path) -> None:
    said = sd2rt("run", small_bundle, "a", *FAST, "--sampler", "euler", "--schedule", "karras")
    facts = json.loads(Image.open(said.out.strip()).text[CHUNK])  # type: ignore[attr-defined]
    facts |= {
        "embeddings": {"a": "0" * 12},
        "loras": [{"name": "b", "scale": 1.0, "sha256": "0" * 12}],
        "inputs": {"image": "0" * 64},
    }
    facts["request"]["unknown"] = "x"
    for path in strings(facts):
        text = json.dumps(changed(facts, path, lambda text: HOSTILE + text))
        source = picture(tmp_path / "a.png", **{CHUNK: text})
        for words in ((small_bundle, "b"), ()):
            said = sd2rt("run", *words, "--from", source, *FAST)
            assert said.code in (0, 2, 3), (path, said.err)
            assert_visible(said.out + said.err)


@pytest.mark.parametrize(
    "text",
    [
        "Steps: {0}, Sampler: {0}, Schedule type: {0}, CFG scale: {0}, Seed: {0}, Size: {0}, Model: {0}, {0}: {0}",
        'Steps: 5, Sampler: Euler, TI hashes: "{0}: {0}", Model hash: {0}, RNG: {0}, Clip skip: {0}, Version: f{0}',
        "<lora:{0}:1> <hypernet:{0}:1>\nSteps: 5, Variation seed: {0}, Variation seed strength: {0}",
    ],
)
def test_texts_of_automatic1111(sd2rt: Command, small_bundle: Path, tmp_path: Path, text: str) -> None:
    hostile = HOSTILE.replace("\n", "").replace("\r", "")
    source = picture(tmp_path / "a.png", **{A1111_CHUNK: f"a prompt\n{text.format(hostile)}"})
    said = sd2rt("run", small_bundle, "--from", source, *FAST)
    assert said.code in (0, 2)
    assert said.err
    assert_visible(said.out + said.err)


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", f"./{HOSTILE}"),
        ("verify", f"./{HOSTILE}"),
        ("run", f"./{HOSTILE}", "a"),
        ("run", "{}", "a", f"--{HOSTILE}"),
        ("run", "{}", "a", "--sampler", HOSTILE),
        ("run", "{}", "a", "--schedule", HOSTILE),
        ("run", "{}", "a", "--sampler-option", f"{HOSTILE}={HOSTILE}"),
        ("run", "{}", "a", "--sampler", "euler", "--sampler-option", f"{HOSTILE}={HOSTILE}"),
        ("run", "{}", "a", "--rng", HOSTILE),
        ("run", "{}", "a", "--backend", HOSTILE),
        ("run", "{}", "a", "--steps", HOSTILE),
        ("run", "{}", "a", "--image", HOSTILE),
        ("run", "{}", "a", "--from", HOSTILE),
        ("run", "{}", "a", "--lora", HOSTILE),
        ("run", "{}", "a", "--lora", f"{HOSTILE}.safetensors"),
        ("run", "{}", "a", "--embedding", f"{HOSTILE}={HOSTILE}"),
        ("run", "{}", "a", "-o", f"{HOSTILE}.gif"),
        ("prepare", "{}", "--part", HOSTILE),
        ("samplers", HOSTILE),
        ("bench", "{}", "--compare", HOSTILE),
        ("build", f"./{HOSTILE}"),
        (HOSTILE,),
    ],
)
def test_texts_of_the_command_line(sd2rt: Command, small_bundle: Path, words: tuple[str, ...]) -> None:
    said = sd2rt(*(str(small_bundle) if word == "{}" else word for word in words))
    assert (said.code, said.out) in ((2, ""), (3, "")), said.err
    assert said.err.count("\n") == 1
    assert_visible(said.err)
