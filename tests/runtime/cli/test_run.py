from __future__ import annotations

import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.runtime import __version__
from sd2rt.runtime.pipeline.pipeline import Pipeline
from sd2rt.runtime.request.request import make_request

from ..conftest import Command, Refused
from .interrupted import interrupted_after

SD2RT = Path(sys.executable).parent / "sd2rt"
FAST = ("--steps", "2", "--threads", "1", "--seed", "5")


pytestmark = pytest.mark.usefixtures("here", "quick_opening")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without a demo in it."""
    monkeypatch.setenv("SD2RT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copy(small_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to be damaged."""
    return Path(shutil.copytree(small_bundle, tmp_path / "copy"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Requests that cannot be honoured: exit 2.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--size", "500x512"), "width 500 is not a multiple of 8 from 64 to 4096: use 496 or 504"),
        (("--size", "512x1"), "height 1 is not a multiple of 8 from 64 to 4096: use 64"),
        (("--size", "0x64"), "width 0 is not a multiple of 8 from 64 to 4096: use 64"),
        (("--size", "8192x64"), "width 8192 is not a multiple of 8 from 64 to 4096: use 4096"),
        (("--size", "512"), "--size '512' is not WxH, such as 512x512"),
        (("--size", "-64x64"), "--size '-64x64' is not WxH, such as 512x512"),
        (("--size", "٦٤x64"), "--size '٦٤x64' is not WxH, such as 512x512"),
        (("--steps", "0"), "num_inference_steps is 0: input should be greater than or equal to 1"),
        (("--steps", "-3"), "num_inference_steps is -3: input should be greater than or equal to 1"),
        (
            ("--steps", "1001"),
            "num_inference_steps is 1001: the schedule has 1000 timesteps, use at most 1000",
        ),
        (("--guidance", "nan"), "guidance_scale is nan: use a finite number"),
        (("--guidance", "inf"), "guidance_scale is inf: use a finite number"),
        (("--guidance", "9,nan"), "guidance_scale is (9.0, nan): use one or more finite numbers"),
        (("--guidance", "9,"), "--guidance '9,' is not a list of numbers separated by ','"),
        (
            ("--guidance-interval", "1-5"),
            "--guidance-interval '1-5' is not a list of numbers separated by ':'",
        ),
        (
            ("--guidance-interval", "5:1"),
            "guidance_interval is (5.0, 1.0): use two noise levels of at least 0, the lower one first",
        ),
        (("--preset", "fast"), "preset is 'fast': input should be 'turbo' or 'lcm'"),
        (("--rescale", "nan"), "guidance_rescale is nan: use a finite number"),
        (("--rescale", "1.5"), "guidance_rescale is 1.5: input should be less than or equal to 1"),
        (("--eta", "-inf"), "eta is -inf: use a finite number"),
        (
            ("--sampler", "magic"),
            "no sampler is named 'magic': choose one of ddim, ddpm, pndm, "
            "lms, euler, euler-a, heun, restart, dpm2, dpm2-a, dpmpp-2s, dpmpp-2s-a, dpmpp-2m, dpmpp-2m-sde, "
            "dpmpp-3m-sde, dpmpp-sde, dpm-fast, deis, unipc, ipndm, sa-solver, lcm, tcd",
        ),
        (
            ("--schedule", "magic"),
            "no schedule is named 'magic': choose one of leading, trailing, linspace, "
            "karras, exponential, beta, lambdas, ays",
        ),
        (("--count", "0"), "--count is 0: give at least 1"),
        (("--device", "gpu"), "'gpu' is not a device: use cpu, cuda or cuda:N"),
        (
            ("--output", "image.gif"),
            "--output image.gif is neither a folder nor a .png, .jpg or .webp file: name one of these",
        ),
        (
            ("--output", "x.png", "--count", "2"),
            "--output x.png is one file, and there are 2 images: name a folder",
        ),
    ],
)
def test_bad_request(refused: Refused, small_bundle: Path, words: tuple[str, ...], said: str) -> None:
    assert refused(2, "run", small_bundle, "a prompt", *words) == said


@pytest.mark.parametrize("words", [("--threads", "0"), ("--precision", "int8"), ("--backend", "magic")])
def test_values_that_an_option_does_not_take(refused: Refused, words: tuple[str, ...]) -> None:
    assert refused(2, "run", "./nowhere", "a", *words).startswith(f"Invalid value for '{words[0]}': ")


@pytest.mark.parametrize(
    "words", [("--size", "500x512"), ("--steps", "0"), ("--guidance", "nan"), ("--output", "image.gif")]
)
def test_bad_request_is_found_before_the_bundle_is_read(refused: Refused, words: tuple[str, ...]) -> None:
    refused(2, "run", "./nowhere", "a prompt", *words)


def test_prompt_that_is_no_text(refused: Refused, small_bundle: Path) -> None:
    """What Python makes of a byte that is not UTF-8."""
    for words in (("a\udcff",), ("a", "--negative", "b\udcff")):
        assert "the text is not valid UTF-8" in refused(2, "run", small_bundle, *words)


def test_words_without_quotes(refused: Refused) -> None:
    assert refused(2, "run", "bundle", "a", "prompt") == (
        "3 arguments, expected [BUNDLE] PROMPT: put the prompt in quotes"
    )


def test_bundle_without_a_prompt(refused: Refused, small_bundle: Path) -> None:
    assert refused(2, "run", small_bundle) == (
        f"{str(small_bundle)!r} is a bundle, and no prompt is given: add one after it"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("fly",),
        ("run",),
        ("run", "a", "--steps", "many"),
        ("run", "a", "--steps"),
        ("run", "a", "--colour"),
        ("inspect",),
        ("inspect", "a", "b"),
        ("--colour",),
        ("build",),
        ("build", "demo", "--precision", "int3"),
    ],
)
def test_usage(refused: Refused, words: tuple[str, ...]) -> None:
    assert refused(2, *words).endswith("(see --help)")


def test_no_words_at_all(sd2rt: Command) -> None:
    said = sd2rt()
    assert said.code == 2
    assert said.err == ""
    for command in ("build", "inspect", "parity", "run", "verify"):
        assert f"\n  {command} " in said.out


@pytest.mark.parametrize("words", [("--help",), ("-h",), ("run", "--help"), ("verify", "-h")])
def test_help(sd2rt: Command, words: tuple[str, ...]) -> None:
    said = sd2rt(*words)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("Usage: sd2rt")


def test_version(sd2rt: Command) -> None:
    said = sd2rt("--version")
    assert (said.code, said.out, said.err) == (0, f"sd2rt {__version__}\n", "")


# Bundles that cannot be used: exit 3.


@pytest.fixture(params=["run", "inspect", "verify"])
def reader(request: pytest.FixtureRequest) -> Callable[[Path | str], tuple[Path | str, ...]]:
    """The commands that read a bundle, as functions of it."""
    return lambda bundle: (request.param, bundle, *(("a", *FAST) if request.param == "run" else ()))


Reader = Callable[[Path | str], tuple[Path | str, ...]]


def test_missing_bundle(refused: Refused, reader: Reader, tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert refused(3, *reader(path)) == (
        f"{path} does not exist: build a bundle with 'sd2rt build CHECKPOINT -o {path}'"
    )


def test_missing_name(refused: Refused, reader: Reader, cache: Path) -> None:
    assert f"{cache / 'bundles' / 'none'} does not exist" in refused(3, *reader("none"))


def test_name_that_is_too_long(refused: Refused, reader: Reader, cache: Path) -> None:
    assert f"{cache / 'bundles'}/xxx" in refused(3, *reader("x" * 300))


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((bundle / "bundle.json").read_text())
    change(data)
    (bundle / "bundle.json").write_text(json.dumps(data))


def test_unknown_key(refused: Refused, reader: Reader, copy: Path) -> None:
    edit(copy, lambda data: data["latents"].update(colour="red"))
    assert refused(3, *reader(copy)) == (
        f"{copy}/bundle.json: latents.colour: unknown key: build the bundle again"
    )


def test_path_that_leaves_the_bundle(refused: Refused, reader: Reader, copy: Path) -> None:
    edit(copy, lambda data: data["tokenizer"]["file"].update(path="../secret\nfile"))
    assert refused(3, *reader(copy)) == (
        f"{copy}/bundle.json: tokenizer.file.path: path '../secret\\nfile' leaves the bundle: "
        "build the bundle again"
    )


@pytest.mark.parametrize("command", ["run", "verify"])
@pytest.mark.parametrize("linked", ["denoiser", "denoiser/model.onnx.data", "tokenizer.json"])
def test_link(refused: Refused, copy: Path, command: str, linked: str) -> None:
    (copy / linked).rename(copy.parent / "elsewhere")
    (copy / linked).symlink_to(copy.parent / "elsewhere")
    words = (copy, "a", *FAST) if command == "run" else (copy,)
    assert refused(3, command, *words) == (
        f"{copy / linked} is a symbolic link: bundles have regular files only, copy it with 'cp -rL'"
    )


@pytest.mark.parametrize("command", ["run", "verify"])
def test_wrong_hash(refused: Refused, copy: Path, command: str) -> None:
    path = copy / "denoiser" / "model.onnx.data"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    words = (copy, "a", *FAST) if command == "run" else (copy,)
    text = refused(3, command, *words)
    assert text.startswith(f"{path} has sha256 ")
    assert text.endswith("copy or build the bundle again")


def test_verify_reads_what_a_receipt_vouches_for(sd2rt: Command, copy: Path) -> None:
    assert sd2rt("verify", copy).out == (
        f"{copy}: {len(read_manifest(copy).files)} files, "
        f"{sum(file.size for file in read_manifest(copy).files) / 1e6:.1f} MB, all match the manifest\n"
    )
    said = sd2rt("verify", copy, "--json")
    facts = json.loads(said.out)
    assert facts["ok"] is True
    assert facts["path"] == str(copy)
    assert facts["identity"] == read_manifest(copy).identity


def test_inspect(sd2rt: Command, copy: Path) -> None:
    shutil.rmtree(copy / "denoiser")
    text = sd2rt("inspect", copy).out
    manifest = read_manifest(copy)
    for fact in (
        str(copy),
        manifest.identity,
        "text_encoder",
        "denoiser",
        "decoder",
        "pndm",
        "64x64",
        "epsilon",
    ):
        assert fact in text
    facts = json.loads(sd2rt("inspect", copy, "--json").out)
    assert facts.pop("path") == str(copy)
    assert facts.pop("identity") == manifest.identity
    # A copy by cp shares nothing with anybody.
    assert facts.pop("shared_bytes") == 0
    assert facts == manifest.model_dump(mode="json")


# Backends that are not there: exit 6.


def test_no_gpu(refused: Refused, small_bundle: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    text = refused(6, "run", small_bundle, "a", "--device", "cuda")
    assert text.startswith("cuda:0 was requested, but this ONNX Runtime")
    assert "pip install '.[cuda]' in sd2rt's checkout" in text


def test_no_onnx_runtime(refused: Refused, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install '.[cpu]' in sd2rt's checkout" in refused(6, "run", small_bundle, "a")


def test_build_without_export(
    refused: Refused, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for checkpoints in ((small_checkpoint,), ("demo", small_checkpoint), ("demo", "--variant", "2.0-depth")):
        assert refused(6, "build", *checkpoints) == (
            "torch is not installed, but building needs it: pip install '.[export,cpu]' in sd2rt's checkout"
        )


def test_demo_is_built_where_it_is_missing(sd2rt: Command, cache: Path, here: Path) -> None:
    said = sd2rt("run", "a", *FAST)
    assert (said.code, said.out) == (0, "5.png\n")
    assert said.err == "sd2rt: building the demo bundle, once\n"
    said = sd2rt("run", "a", *FAST)
    assert (said.out, said.err) == ("5-1.png\n", "")
    assert Path("5.png").read_bytes() == Path("5-1.png").read_bytes()
    assert read_manifest(cache / "bundles" / "demo").source.name == "demo"


def test_demo_that_cannot_be_built(
    refused: Refused, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sd2rt.engines.demo.build.PACKAGED", tmp_path)
    text = refused(3, "run", "a", "--quiet")
    assert text.startswith(f"the demo is incomplete, {tmp_path}")
    assert not (cache / "bundles" / "demo").exists()


# Images.


def test_image_and_what_it_says(sd2rt: Command, small_bundle: Path, here: Path) -> None:
    prompt, negative = "Ein Äpfelchen, 林檎 🍎", "naïve"
    said = sd2rt("run", small_bundle, prompt, "--negative", negative, "--size", "64x128", *FAST)
    assert (said.code, said.out, said.err) == (0, "5.png\n", "")
    manifest = read_manifest(small_bundle)
    with Image.open("5.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 128))
        text = image.text  # type: ignore[attr-defined]
    assert text["parameters"] == (
        f"{prompt}\nNegative prompt: {negative}\n"
        f"Steps: 2, Sampler: PLMS, CFG scale: 7.5, Seed: 5, Size: 64x128, Spacing: leading, RNG: CPU, "
        f"Model hash: {manifest.identity[:10]}, Model: small, Version: sd2rt {__version__}"
    )
    facts = json.loads(text["sd2rt"])
    assert facts["prompt"] == prompt
    assert facts["identity"] == manifest.identity


def test_image_is_the_pipelines(sd2rt: Command, small_bundle: Path) -> None:
    sd2rt("run", small_bundle, "a", "--sampler", "ddim", "--eta", "0.5", "--guidance", "3", *FAST)
    with Pipeline.open(small_bundle, threads=1) as pipe:
        output = pipe("a", num_inference_steps=2, sampler="ddim", eta=0.5, guidance_scale=3, seed=5)
    assert isinstance(output.images, list)
    with Image.open("5.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(output.images[0]))


def test_empty_prompt(sd2rt: Command, small_bundle: Path) -> None:
    said = sd2rt("run", small_bundle, "", *FAST)
    assert (said.code, said.out, said.err) == (0, "5.png\n", "")


@pytest.mark.parametrize("prompt", ["a red apple " * 8_334, "x" * 100_000, "🍎" * 100_000])
def test_prompt_of_100_000_characters(sd2rt: Command, small_bundle: Path, prompt: str) -> None:
    said = sd2rt("run", small_bundle, prompt, *FAST)
    assert (said.code, said.out) == (0, "5.png\n")
    assert said.err.startswith("sd2rt: warning: the prompt is longer than 77 tokens, its end was cut off: '")
    assert said.err.count("\n") == 1
    assert prompt[-100:].strip() in said.err
    assert len(said.err) < 2000
    # The rest stands in the file all the same.
    with Image.open("5.png") as image:
        assert image.text["parameters"].startswith(f"{prompt}\n")  # type: ignore[attr-defined]


def test_quiet(sd2rt: Command, small_bundle: Path) -> None:
    said = sd2rt("run", small_bundle, "long " * 100, "--quiet", *FAST)
    assert (said.code, said.out, said.err) == (0, "", "")
    assert Path("5.png").is_file()


def test_warnings_are_as_before_afterwards(sd2rt: Command, small_bundle: Path) -> None:
    import warnings

    before = warnings.showwarning, list(warnings.filters)
    sd2rt("run", small_bundle, "long " * 100, "--quiet", *FAST)
    assert (warnings.showwarning, list(warnings.filters)) == before


def test_count(sd2rt: Command, small_bundle: Path, here: Path) -> None:
    said = sd2rt("run", small_bundle, "a", "--count", "3", "-o", "images", *FAST)
    assert said.out.split() == ["images/5.png", "images/6.png", "images/7.png"]
    assert names(here / "images") == ["5.png", "6.png", "7.png"]
    pixels = []
    for seed in (5, 6, 7):
        with Image.open(f"images/{seed}.png") as image:
            assert f"Seed: {seed}," in image.text["parameters"]  # type: ignore[attr-defined]
            pixels.append(np.asarray(image))
    assert not np.array_equal(pixels[0], pixels[1])


def test_guidance_by_call(sd2rt: Command, small_bundle: Path) -> None:
    words = ("--sampler", "ddim", "--guidance", "9,3", "--guidance-interval", "0.2:inf", *FAST)
    assert sd2rt("run", small_bundle, "a", *words).code == 0
    options: dict[str, Any] = {"guidance_scale": [9, 3], "guidance_interval": (0.2, None), "sampler": "ddim"}
    with Pipeline.open(small_bundle, threads=1) as pipe:
        (expected,) = pipe("a", num_inference_steps=2, seed=5, **options).images
        (whole,) = pipe("a", num_inference_steps=2, seed=5, sampler="ddim", guidance_scale=9).images
    with Image.open("5.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
        assert not np.array_equal(np.asarray(image), np.asarray(whole))
        text = image.text  # type: ignore[attr-defined]
    assert "CFG scale: 9, " in text["parameters"]
    assert "CFG scales: 9/3, CFG interval: 0.2/inf, " in text["parameters"]
    facts = json.loads(text["sd2rt"])
    assert (facts["guidance_scale"], facts["guidance_interval"]) == ([9, 3], [0.2, None])
    again = make_request(prompt="a", **{name: facts[name] for name in options if name != "sampler"})
    assert (again.guidance_scale, again.guidance_interval) == ((9, 3), (0.2, float("inf")))


def test_preset(sd2rt: Command, small_bundle: Path) -> None:
    said = sd2rt("run", small_bundle, "a", "--preset", "turbo", "--seed", "5", "--json", "--threads", "1")
    (line,) = (json.loads(line) for line in said.out.splitlines())
    expected = {"sampler": "euler", "schedule": "trailing", "steps": 1, "guidance_scale": 0}
    assert expected.items() <= line.items()


def test_json(sd2rt: Command, small_bundle: Path) -> None:
    said = sd2rt("run", small_bundle, "ä", "--json", "--count", "2", "-o", "images", *FAST)
    assert said.err == ""
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line["path"] for line in lines] == ["images/5.png", "images/6.png"]
    assert [line["seed"] for line in lines] == [5, 6]
    expected = {"prompt": "ä", "negative_prompt": "", "steps": 2, "sampler": "pndm", "guidance_scale": 7.5}
    expected |= {"width": 64, "height": 64, "bundle": "small"}
    for line in lines:
        assert expected.items() <= line.items()
        assert line["identity"] == read_manifest(small_bundle).identity


def test_seed_is_told_where_none_was_given(sd2rt: Command, small_bundle: Path) -> None:
    words = ("run", small_bundle, "a", "--json", "--steps", "1", "--threads", "1")
    seeds = [json.loads(sd2rt(*words).out)["seed"] for _ in range(2)]
    assert seeds[0] != seeds[1]
    assert names(Path()) == sorted(f"{seed}.png" for seed in seeds)


def test_prompts_from_standard_input(
    sd2rt: Command, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\r\n\n  \ntwo\u2028still two\nthree"))
    said = sd2rt("run", small_bundle, "-", "--json", "--count", "2", *FAST)
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [(line["prompt"], line["seed"]) for line in lines] == [
        ("one", 5),
        ("one", 6),
        ("two\u2028still two", 7),
        ("two\u2028still two", 8),
        ("three", 9),
        ("three", 10),
    ]


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_no_prompt_on_standard_input(
    refused: Refused, small_bundle: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert refused(2, "run", small_bundle, "-") == "standard input holds no prompt: write one a line"


def test_standard_input_that_is_no_text(
    refused: Refused, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n"), encoding="utf-8"))
    assert "standard input is not utf-8 text" in refused(2, "run", small_bundle, "-")


# Files.


def test_unnamed_files_are_never_overwritten(sd2rt: Command, small_bundle: Path, here: Path) -> None:
    (here / "5.png").write_bytes(b"mine")
    for number in (1, 2):
        assert sd2rt("run", small_bundle, "a", *FAST).out == f"5-{number}.png\n"
    assert (here / "5.png").read_bytes() == b"mine"
    assert names(here) == ["5-1.png", "5-2.png", "5.png"]


def test_named_file_is_overwritten(sd2rt: Command, small_bundle: Path, here: Path) -> None:
    (here / "image.PNG").write_bytes(b"mine")
    assert sd2rt("run", small_bundle, "a", "-o", "image.PNG", *FAST).out == "image.PNG\n"
    assert names(here) == ["image.PNG"]
    with Image.open("image.PNG") as image:
        image.load()


def test_folders_are_made(sd2rt: Command, small_bundle: Path) -> None:
    assert sd2rt("run", small_bundle, "a", "-o", "a/b/c.png", *FAST).out == "a/b/c.png\n"
    assert sd2rt("run", small_bundle, "a", "-o", "d/e", *FAST).out == "d/e/5.png\n"
    assert Path("a/b/c.png").is_file()
    assert Path("d/e/5.png").is_file()


def test_folder_that_is_named_as_a_file(sd2rt: Command, small_bundle: Path) -> None:
    for name in ("folder.png", "folder.v2"):
        Path(name).mkdir()
        assert sd2rt("run", small_bundle, "a", "-o", name, *FAST).out == f"{name}/5.png\n"


@pytest.mark.parametrize("output", ["file", "file/x.png", "file/a/b/", "link/x.png"])
def test_output_below_a_file(refused: Refused, here: Path, output: str) -> None:
    (here / "file").write_bytes(b"")
    (here / "link").symlink_to("nowhere")
    assert refused(2, "run", "./nowhere", "a", "-o", output).endswith("is not a folder")


def test_output_that_cannot_be_written(refused: Refused, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def access(path: Path, mode: int) -> bool:
        asked.append(path)
        return not mode & os.W_OK

    monkeypatch.setattr(os, "access", access)
    assert refused(2, "run", "./nowhere", "a", "-o", "new/folder").endswith(
        "cannot be written to: choose another folder"
    )
    assert asked == [here]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_file_is_whole_or_not_there(
    refused: Refused, small_bundle: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, here: Path
) -> None:
    whole = Path.write_bytes

    def half(path: Path, data: bytes) -> None:
        whole(path, data[: len(data) // 2])
        if data.startswith(b"\x89PNG"):
            raise error

    monkeypatch.setattr(Path, "write_bytes", half)
    if isinstance(error, OSError):
        text = refused(5, "run", small_bundle, "a", *FAST)
        assert text == "5.png cannot be written: No space left on device"
    else:
        assert refused(130, "run", small_bundle, "a", *FAST) == "interrupted"
    assert names(here) == []


def test_image_that_is_not_finite(
    refused: Refused, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sd2rt.runtime.rng.torch_cpu.Generator.randn", lambda self, shape: np.full(shape, np.nan)
    )
    text = refused(5, "run", small_bundle, "a", "--sampler", "ddim", *FAST)
    assert text.startswith("seed 5: latents are not finite after step 1 of 2 (timestep 501)")


# What else can happen.


def test_interrupt(refused: Refused, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*words: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "open", interrupted)
    assert refused(130, "run", small_bundle, "a") == "interrupted"


def test_bug(refused: Refused, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(*words: object, **options: object) -> None:
        raise ZeroDivisionError("of\nall\n things")

    monkeypatch.setattr(Pipeline, "open", buggy)
    assert refused(1, "run", small_bundle, "a") == (
        "a bug, ZeroDivisionError: of all things: please report it with the output of --debug"
    )


@pytest.mark.parametrize("by", ["option", "variable"])
def test_debug(sd2rt: Command, here: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    if by == "variable":
        monkeypatch.setenv("SD2RT_DEBUG", "1")
    said = sd2rt("inspect", "./nowhere", *(["--debug"] if by == "option" else []))
    assert said.code == 3
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2].startswith(f"sd2rt.engines.errors.BundleError: {here}/nowhere does not exist")
    assert lines[-1].startswith(f"sd2rt: {here}/nowhere does not exist")


# Processes.


def spawn(*words: str | Path, **options: Any) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    return subprocess.Popen([str(word) for word in words], text=True, **{**pipes, **options})


def test_script(small_bundle: Path) -> None:
    with spawn(SD2RT, "run", small_bundle, "-", *FAST, stdin=subprocess.PIPE) as child:
        out, err = child.communicate("ein Äpfelchen\n")
    assert (child.returncode, out, err) == (0, "5.png\n", "")
    assert Path("5.png").is_file()


def test_script_that_fails(here: Path) -> None:
    with spawn(SD2RT, "verify", "./nowhere") as child:
        out, err = child.communicate()
    assert (child.returncode, out) == (3, "")
    path = here / "nowhere"
    assert err == f"sd2rt: {path} does not exist: build a bundle with 'sd2rt build CHECKPOINT -o {path}'\n"


def test_module(tmp_path: Path) -> None:
    with spawn(sys.executable, "-P", "-m", "sd2rt", "--version") as child:
        assert child.communicate() == (f"sd2rt {__version__}\n", "")
    assert child.returncode == 0


def test_reader_that_stops_reading(small_bundle: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with spawn(SD2RT, "run", small_bundle, "a", "--json", *FAST, stdout=write) as child:
        os.close(write)
        _, err = child.communicate()
    assert (child.returncode, err) == (141, "")


@pytest.mark.parametrize("words", [("inspect",), ("run", "-", "--steps", "1")], ids=["inspect", "run"])
def test_closed_streams(small_bundle: Path, here: Path, words: tuple[str, ...]) -> None:
    command = [str(SD2RT), words[0], str(small_bundle), *words[1:]]
    code = f"import os; [os.close(n) for n in (0, 1, 2)]; os.execv({command[0]!r}, {command!r})"
    with spawn(sys.executable, "-c", code) as child:
        out, err = child.communicate()
    # Without standard input there is no prompt.
    assert (child.returncode, out, err) == (2 if words[0] == "run" else 0, "", "")
    assert names(here) == []


def test_progress_on_a_terminal(small_bundle: Path) -> None:
    ours, theirs = pty.openpty()
    with spawn(
        SD2RT, "run", small_bundle, "a", *FAST, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    ) as child:
        os.close(theirs)
        shown = b""
        while True:
            try:
                read = os.read(ours, 4096)
            except OSError:
                break
            shown += read
            if not read:
                break
        out, _ = child.communicate()
    os.close(ours)
    assert (child.returncode, out) == (0, "5.png\n")
    assert b"it/s" in shown


def test_interrupt_between_steps(small_bundle: Path, here: Path) -> None:
    words = ("--sampler", "euler", "--steps", "1000", "--threads", "1", "-o", "images")
    assert interrupted_after(4, "run", small_bundle, "a", *words) == (130, "sd2rt: interrupted\n")
    assert names(here) == []


def test_interrupt_during_a_build(small_checkpoint: Path, here: Path) -> None:
    command = (SD2RT, "build", small_checkpoint, "-o", here / "bundle", "--json")
    with spawn(*command, start_new_session=True) as child:
        assert child.stdout is not None
        started = (json.loads(line).get("part") == "text_encoder" for line in child.stdout)
        assert any(started)
        assert ".bundle.building" in names(here)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate()
    assert (child.returncode, err) == (130, "sd2rt: interrupted\n")
    assert names(here) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)


@pytest.mark.parametrize("length", [243, 255, 256, 300, 5000])
@pytest.mark.parametrize("output", ["{}.png", "images/{}.png", "{}", "{}/{}/x.png", "{}/images"])
def test_names_that_are_too_long(refused: Refused, small_bundle: Path, length: int, output: str) -> None:
    """Also the names of temporary files, which are longer: an image that is made can be saved."""
    name = output.format("a" * length, "b" * length)
    for option in ("--output", "--save-depth"):
        if length > 255 or name.endswith("a.png"):
            said = refused(2, "run", small_bundle, "a", *FAST, option, name)
            assert said.startswith(option)


@pytest.mark.parametrize("name", ["a" * 238 + ".png", "ü" * 119 + ".png", "a" * 255])
def test_names_that_are_just_short_enough(sd2rt: Command, small_bundle: Path, name: str) -> None:
    said = sd2rt("run", small_bundle, "a", *FAST, "-o", name)
    assert said.code == 0, said.err
    assert Path(said.out.strip()).is_file()


def test_output_is_a_link_to_itself(refused: Refused, small_bundle: Path, here: Path) -> None:
    (here / "loop").symlink_to("loop")
    for output in ("loop", "loop/x.png", "loop/images"):
        refused(2, "run", small_bundle, "a", *FAST, "-o", output)


@pytest.mark.parametrize("words", [("inspect",), ("verify",), ("run",), ("prepare",)])
@pytest.mark.parametrize("name", ["a" * 300, "./" + "a" * 300, "./" + "a/" * 3000])
def test_bundles_that_cannot_be_named(sd2rt: Command, words: tuple[str, ...], name: str) -> None:
    said = sd2rt(*words, name, *(["a"] if words == ("run",) else []))
    assert said.code == 3, said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--threads", "2147483648"), "threads is 2147483648: give at least 1, up to 1024"),
        (("--seed", str(2**64)), "use a number from -2**63 to 2**64 - 1"),
        (("--seed", "9" * 4000), "use a number from -2**63 to 2**64 - 1"),
        (("--variation", f"{2**64}:0.5"), "use a number from -2**63 to 2**64 - 1"),
        (("--guidance", "1e308"), "use numbers from -1e+06 to 1e+06"),
        (("--sigmas", "1e308,1,0"), "sigmas holds 1e+308: use 0, or numbers from 1e-08 to 1e+08"),
        (("--sigmas", "1,1e-320,0"), "sigmas holds 1e-320: use 0, or numbers from 1e-08 to 1e+08"),
        (("--sampler", "euler", "--sampler-option", "sigma_max=1e308"), "less than or equal to 100000000"),
        (("--sampler", "euler", "--sampler-option", "s_churn=" + "[" * 5000 + "]" * 5000), "s_churn"),
        (("--sampler", "euler", "--sampler-option", "s_churn=" + "[" * 960 + "]" * 960), "s_churn"),
        (("--lora", "x.safetensors:1e309"), "the scale of x.safetensors is inf"),
        (("--lora", f"x.safetensors:1{'0' * 400}"), "the scale of x.safetensors is inf"),
        (("--embedding", "\udcff=x.safetensors"), "x.safetensors"),
    ],
)
def test_extreme_values(refused: Refused, small_bundle: Path, words: tuple[str, ...], said: str) -> None:
    line = refused(2, "run", small_bundle, "a", *words)
    assert said in line
    assert len(line) < 1000
