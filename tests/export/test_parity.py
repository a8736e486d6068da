"""`sd2rt parity`: its report, its exit code, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sd2rt.export import parity
from sd2rt.runtime.cli.main import main


def test_a_bundle_and_its_checkpoint(
    small_bundle: Path, small_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parity", str(small_bundle), str(small_checkpoint), "--steps", "3", "--json"]) == 0
    # The report is the last line, after lines of progress.
    report = json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=pytest.fail)
    assert report["holds"]
    assert {row["what"].split(":")[0] for row in report["rows"]} >= {"text_encoder", "denoiser", "decoder"}
    # For each task: guided and unguided, worst pixel and PSNR.
    assert sum("text-to-image 64x64, 3 steps" in row["what"] for row in report["rows"]) == 4
    assert sum("image-to-image 64x64, 3 steps" in row["what"] for row in report["rows"]) == 4


def test_beyond_its_bounds_is_exit_3(
    small_bundle: Path,
    small_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(parity.PART_BOUNDS, "fp32", 0.0)
    assert main(["parity", str(small_bundle), str(small_checkpoint), "--steps", "1"]) == 3
    assert "EXCEEDED" in capsys.readouterr().out


def test_another_checkpoint_is_refused(small_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(small_bundle), "demo"]) == 3
    assert "whose weights differ from those of demo" in capsys.readouterr().err


@pytest.mark.parametrize("steps", ["0", "1001"])
def test_steps_out_of_range(small_bundle: Path, steps: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(small_bundle), "demo", "--steps", steps]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_equal_images_have_no_ratio() -> None:
    row = parity.Row("image", float("inf"), 55, "dB", True)
    assert parity.Report("b", "fp32", (row,)).as_dict()["rows"][0]["error"] is None
