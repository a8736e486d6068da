"""`sd2rt bench`: what its result holds, whatever the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Command, Refused
from .interrupted import interrupted_after

pytestmark = pytest.mark.usefixtures("here", "quick_opening")

FAST = ("--steps", "3", "--threads", "1", "--repetitions", "1", "--no-first-image")
CALLS = 4
"""Of PNDM in three steps."""


def result_of(sd2rt: Command, *words: str | Path) -> dict[str, Any]:
    said = sd2rt("bench", *words, "--json")
    assert said.code == 0, said.err
    assert said.out.count("\n") == 1
    result: dict[str, Any] = json.loads(said.out)
    return result


def test_cases_by_size_and_batch(sd2rt: Command, small_bundle: Path) -> None:
    words = (*FAST, "--repetitions", "3", "--batch", "2,1,2", "--size", "64x64,128x64")
    result = result_of(sd2rt, small_bundle, *words)
    cases = result["cases"]
    shapes = [(case["width"], case["height"], case["batch"]) for case in cases]
    assert shapes == [(64, 64, 2), (64, 64, 1), (128, 64, 2), (128, 64, 1)]
    for case in cases:
        assert (case["calls"], case["iterations_per_image"]) == (CALLS, CALLS)
        assert case["it_per_second"]["n"] == case["seconds_per_image"]["n"] == 3
        # Every step by its yield; the host's part without the first of each image.
        assert (case["seconds_per_yield"]["n"], case["host_us"]["n"], case["first_host_us"]["n"]) == (
            12,
            9,
            3,
        )
        assert case["seconds_per_yield"]["p10"] <= case["seconds_per_yield"]["p90"]
        assert "p10" not in case["host_us"]
        assert (case["warmup"]["calls"], case["device_bytes"]) == (3, None)
    assert result["benchmark"] == "bench"
    assert result["first_image"] is None
    assert result["peak_rss_bytes"] >= result["opening"]["peak_rss_bytes"] > 10_000_000
    assert result["machine"]["packages"]["sd2rt"]
    settings = result["settings"]
    assert (settings["threads"], settings["backend"], settings["precision"]) == (1, "onnxruntime", "fp32")


def test_rates_and_stages_are_of_the_same_time(sd2rt: Command, small_bundle: Path) -> None:
    [case] = result_of(sd2rt, small_bundle, *FAST, "--batch", "2")["cases"]
    stages = {name: each["median"] for name, each in case["stages"].items()}
    assert list(stages) == ["tokenise", "text", "prepare", "steps", "decode", "png"]
    assert min(stages.values()) > 0
    assert sum(stages.values()) == pytest.approx(2 * case["seconds_per_image"]["median"], rel=1e-4)
    assert case["images_per_second"]["median"] * case["seconds_per_image"]["median"] == pytest.approx(
        1, rel=1e-4
    )
    assert case["it_per_second"]["median"] * stages["steps"] == pytest.approx(2 * CALLS, rel=1e-4)
    assert case["seconds_per_step"]["median"] * CALLS == pytest.approx(stages["steps"], rel=1e-4)
    # On the CPU a step is done when it is yielded.
    yielded = case["seconds_per_yield"]
    assert CALLS * yielded["min"] < stages["steps"]
    assert yielded["median"] * 1e6 > case["launch_us"]["min"] + case["host_us"]["min"] > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_another_backend_and_precision(sd2rt: Command, small_bundle: Path, precision: str) -> None:
    openvino = pytest.importorskip("openvino")
    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in able:
        pytest.skip("this CPU has no bfloat16 instructions")
    chosen = ("--backend", "openvino") if precision == "fp32" else ("--precision", precision)
    said = sd2rt("bench", small_bundle, *FAST, *chosen)
    assert said.code == 0, said.err
    settings = json.loads(said.out.splitlines()[-1])["settings"]
    assert (settings["backend"], settings["precision"]) == ("openvino", precision)
    assert f"openvino in {precision} on cpu" in said.out.splitlines()[1]


def test_no_warm_up(sd2rt: Command, small_bundle: Path) -> None:
    [case] = result_of(sd2rt, small_bundle, *FAST, "--warmup", "0")["cases"]
    assert case["warmup"] is None


@pytest.mark.parametrize(
    ("kind", "task", "stage"),
    [
        ("inpainting", "inpainting", "encode"),
        ("depth", "depth-to-image", "encode"),
        ("upscaler", "upscaling", None),
        ("turbo", "text-to-image", None),
    ],
)
def test_other_kinds(
    request: pytest.FixtureRequest, sd2rt: Command, kind: str, task: str, stage: str | None
) -> None:
    bundle = request.getfixturevalue(f"small_{kind}_bundle")
    steps = () if kind == "turbo" else ("--steps", "3")
    result = result_of(
        sd2rt, bundle, *steps, "--threads", "1", "--repetitions", "2", "--batch", "2", "--no-first-image"
    )
    [case] = result["cases"]
    assert (result["bundle"]["kind"], result["bundle"]["task"]) == (kind, task)
    assert (case["width"], case["height"]) == (64, 64)
    # Both repetitions encode their pictures: what was remembered of the first is not taken.
    assert ("encode" in case["stages"]) == (stage is not None)
    assert stage is None or case["stages"][stage]["min"] > 0
    if kind == "turbo":
        assert (result["settings"]["guidance_scale"], case["calls"]) == (0.0, 1)
        assert "host_us" not in case


def test_larger_upscaled_images_are_made_in_tiles(sd2rt: Command, small_upscaler_bundle: Path) -> None:
    [case] = result_of(sd2rt, small_upscaler_bundle, *FAST, "--steps", "1", "--size", "640x64")["cases"]
    assert case["iterations_per_image"] > 1
    # Tiles share calls.
    assert case["calls"] <= case["iterations_per_image"]


def test_tables_come_before_the_line(sd2rt: Command, small_bundle: Path, here: Path) -> None:
    said = sd2rt("bench", small_bundle, *FAST, "--batch", "1,2", "-o", "result.json")
    *tables, line = said.out.splitlines()
    assert json.loads(line) == json.loads((here / "result.json").read_text())
    found = {row.split("  ")[0] for row in tables}
    assert {"it/s", "images/s", "host us/step", "opening the bundle, s", "tokenise", "png"} <= found
    assert any("64x64 x 1" in row and "64x64 x 2" in row for row in tables)
    assert [path.name for path in here.iterdir()] == ["result.json"]


def test_first_image_and_lean_process(small_bundle: Path, here: Path) -> None:
    """As a process, whose own memory is small beside a child's."""
    code = (
        "import sys\nfrom sd2rt.runtime.cli.main import main\ncode = main()\n"
        "loaded = {'torch', 'onnx', 'diffusers', 'transformers'} & {*sys.modules}\n"
        "assert not loaded, loaded\nsys.exit(code)"
    )
    words = ("bench", small_bundle, *FAST[:-1], "--json", "--prompt=--a dash")
    child = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, cwd=here
    )
    assert child.returncode == 0, child.stderr
    first = json.loads(child.stdout)["first_image"]
    assert first["seconds"]["n"] == 1
    assert first["seconds"]["median"] > json.loads(child.stdout)["cases"][0]["seconds_per_image"]["min"]
    assert first["warmup_seconds"] > 0
    assert first["peak_rss_bytes"]["median"] > 30_000_000
    assert list(here.iterdir()) == []


# Errors.


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            ("--batch", "0"),
            2,
            "--batch '0' is not a list of numbers of at least 1, such as 1,2,4",
        ),
        (("--batch", "1,"), 2, "--batch '1,' is not a list of numbers of at least 1"),
        (("--batch", "two"), 2, "--batch 'two' is not a list of numbers of at least 1"),
        (("--size", "100x64"), 2, "width 100 is not a multiple of 8"),
        (("--size", "64"), 2, "--size '64' is not WxH"),
        (("--steps", "0"), 2, "num_inference_steps is 0"),
        (("--sampler", "magic"), 2, "no sampler is named 'magic'"),
        (("--guidance", "nan"), 2, "guidance_scale is nan: use a finite number"),
        (("--repetitions", "0"), 2, "Invalid value for '--repetitions'"),
        (("--threads", "0"), 2, "Invalid value for '--threads'"),
        (("--prompt", "-"), 2, "--prompt - is for 'sd2rt run', which reads standard input"),
        (
            ("--output", "none/result.json"),
            2,
            "--output none/result.json: folder none does not exist: make it first",
        ),
        (("--profile", "."), 2, "--profile . is a folder: give a file"),
        (("--device", "gpu"), 2, "'gpu' is not a device: use cpu, cuda or cuda:N"),
        (("--backend", "tensorrt"), 2, "tensorrt needs an NVIDIA GPU"),
        (("--precision", "int8"), 2, "--precision"),
        (("--precision", "fp16"), 2, "--precision fp16 is chosen when a bundle is built"),
        (("--precision", "bf16", "--backend", "onnxruntime"), 2, "--precision bf16 needs --backend openvino"),
    ],
)
def test_bad_usage(
    refused: Refused, small_bundle: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    assert said in refused(code, "bench", small_bundle, *FAST, *words)


def test_no_bundle(refused: Refused) -> None:
    assert "does not exist" in refused(3, "bench", "./none", *FAST)


def test_upscaled_size_that_is_no_multiple(refused: Refused, small_upscaler_bundle: Path) -> None:
    said = refused(2, "bench", small_upscaler_bundle, *FAST, "--size", "66x64")
    assert said == "--size 66x64 is not a multiple of the upscaling factor: use multiples of 4"


def test_first_image_that_fails(small_bundle: Path, here: Path) -> None:
    """The exit code is the child's, and what that has said is not said again."""
    words = ("bench", small_bundle, *FAST[:-1], "--device", "cuda:99")
    command = [sys.executable, "-P", "-m", "sd2rt", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=here)
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith("sd2rt: ")
    assert done.stderr.count("\n") == 1


def test_interrupt_writes_nothing(small_bundle: Path, here: Path) -> None:
    asked = ("--steps", "1000", "--sampler", "euler", "-o", "result.json", "--profile", "trace.json")
    ended = interrupted_after(12, "bench", small_bundle, *FAST, *asked)
    assert ended == (130, "sd2rt: interrupted\n")
    assert os.listdir(here) == []
