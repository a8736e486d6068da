"""`sd2rt build`, `inspect`, `verify` and `run`, where they are about engines."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sd2rt.engines.bundle.manifest import read_manifest

from ..conftest import Command, Refused

pytestmark = pytest.mark.usefixtures("here")
RTX = ("--engines-only", "--backend", "tensorrt-rtx")


@pytest.fixture
def bundle(demo_half_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_half_bundle, tmp_path / "half", copy_function=os.link))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--engines-only",), 2, "no backend is named: add --backend tensorrt or --backend tensorrt-rtx"),
        (("--batch", "4"), 2, "--batch is an option for engines: add --backend"),
        (("--sm", "89"), 2, "--sm is an option for engines: add --backend"),
        ((*RTX, "--sm", "90"), 2, "--sm 90: tensorrt-rtx builds for 75, 80, 86, 89, 120, 121"),
        (
            (*RTX, "--sm", "ada"),
            2,
            "--sm 'ada' is not a compute capability: use, for example, 89 for 8.9 or 120 for 12.0",
        ),
        ((*RTX, "--sm", "89", "--portable"), 2, "--portable builds for every GPU, --sm for some"),
        ((*RTX, "--sm", "89", "--batch", "0"), 2, "--batch '0': its numbers do not rise"),
        ((*RTX, "--sm", "89", "--size", "500"), 2, "width 500 is not a multiple of 8"),
        ((*RTX, "--sm", "89", "--part", "unet"), 2, "--part 'unet': the parts are text_encoder, denoiser"),
        (
            (*RTX, "--sm", "89", "--refit", "all"),
            2,
            "--refit all: TensorRT for RTX cannot build refittable engines without a GPU",
        ),
        ((*RTX, "--sm", "89", "--precision", "fp16"), 2, "--precision is an option for checkpoints, but"),
        ((*RTX, "--sm", "89", "-o", "there"), 2, "--output is an option for checkpoints, but --engines-only"),
        (RTX, 6, "no GPU found to build for: add --sm 89"),
        (("--engines-only", "--backend", "tensorrt"), 6, "tensorrt cannot be loaded"),
    ],
)
def test_engines_that_cannot_be_built(
    refused: Refused, bundle: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert said in refused(code, "build", bundle, *words)
    assert not read_manifest(bundle).engines


def test_no_bundle(refused: Refused, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert "does not exist" in refused(3, "build", tmp_path / "none", *RTX, "--sm", "89")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--backend", "tensorrt"), 2, "tensorrt needs an NVIDIA GPU: use --device cuda"),
        (("--backend", "tensorrt", "--device", "cuda"), 6, ""),
        (("--backend", "fast"), 2, "'fast' is not one of"),
    ],
)
def test_runs_that_cannot_be(
    refused: Refused, small_bundle: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    assert said in refused(code, "run", small_bundle, "a fox", *words)


def test_built_inspected_and_verified(sd2rt: Command, refused: Refused, bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    words = ("build", bundle, *RTX, "--sm", "89", "--sm", "120", "--size", "128", "--part", "text_encoder")
    made = sd2rt(*words, "--json")
    assert made.code == 0, made.err
    told: dict[str, Any] = json.loads(made.out.splitlines()[-1])
    engine = Path(told["path"])
    assert engine.name.startswith("tensorrt-rtx-sm89-sm120-b1-")
    assert (told["part"], told["fresh"], told["bytes"]) == ("text_encoder", True, engine.stat().st_size)
    assert "already built" in sd2rt(*words).out
    shown = " ".join(sd2rt("inspect", bundle).out.split())
    assert "text_encoder b1 tensorrt-rtx 1." in shown
    assert "sm_89, sm_120" in shown
    assert json.loads(sd2rt("verify", bundle, "--json").out)["ok"]
    engine.write_bytes(engine.read_bytes()[:-1])
    assert "bytes, its manifest says" in refused(3, "verify", bundle)
    engine.write_bytes(bytes(told["bytes"]))
    assert "does not match its manifest: build it again" in refused(3, "verify", bundle)
