"""From process start to PNG on the small network: equal images, and correct ratios."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.page import tables
from benchmarks.page.latest import Results

pytestmark = pytest.mark.usefixtures("compiled_once")
ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.first_image", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


def test_the_same_picture_in_less_memory(tmp_path: Path, small_checkpoint: Path, small_bundle: Path) -> None:
    ran = run(
        "--checkpoint", small_checkpoint, "--bundle", small_bundle, "--steps", 2, "--pairs", 1, "--warmup", 0,
        "--output", tmp_path / "first-image.json",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "writing" not in ran.stderr, "nothing is built where both are given"
    result = json.loads((tmp_path / "first-image.json").read_text())
    assert result == json.loads(ran.stdout.splitlines()[-1])
    assert (result["checkpoint"], result["steps"], result["pairs"]) == ("given", 2, 1)
    assert result["max_pixel"] <= 2
    ours, theirs = result["sd2rt"], result["diffusers"]
    for name in ("seconds", "peak_rss_bytes"):
        assert ours[name]["n"] == theirs[name]["n"] == 1
        ratio = result["ratios"][name]["median"]
        assert ratio == pytest.approx(ours[name]["median"] / theirs[name]["median"], abs=1e-3)
        bound = result["bounds"][name]
        assert bound["holds"] == (ratio <= bound["bound"])
    # PyTorch in sd2rt's process would show in its memory.
    assert result["ratios"]["peak_rss_bytes"]["median"] < 0.7

    page = tables.SECTIONS["first_image"](Results(tmp_path), tmp_path)
    for side in ("sd2rt", "diffusers"):
        assert f"| {side}, s | " in page
        assert f"| {side}, peak MB | " in page


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--pairs", "0"], "--pairs and --steps must be at least 1, --warmup at least 0"),
        (["--warmup", "-1"], "--pairs and --steps must be at least 1, --warmup at least 0"),
        (["--bundle", "b"], "--bundle requires --checkpoint"),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], line: str) -> None:
    ran = run(*arguments)
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", f"{line}\n")
