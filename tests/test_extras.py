"""What `pip install 'sd2rt[cuda]'` would install, by the package index itself; nothing is downloaded but metadata."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"


def extra(name: str) -> list[str]:
    return list(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][name]
    )


def test_the_oldest_onnxruntime_for_cuda_is_a_tested_one() -> None:
    """Earlier ones leave attention of the graphs' opset to the CPU, or compute it of several kernels."""
    (pin,) = (line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("onnxruntime-gpu=="))
    major, minor, _ = pin.partition("==")[2].split(".")
    assert f"onnxruntime-gpu[cuda,cudnn]>={major}.{minor}" in extra("cuda")


def test_cuda_brings_the_libraries_that_are_loaded(tmp_path: Path) -> None:
    """Those of CUDA 13 and cuDNN 9, as sd2rt.engines.onnxruntime.cuda_libraries has them."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--constraint", str(CONSTRAINTS)]
    done = subprocess.run(
        [*command, "--report", str(report), *extra("cuda")], capture_output=True, text=True, timeout=300
    )
    assert "ResolutionImpossible" not in done.stderr
    if done.returncode:
        pytest.skip(f"the package index did not answer: {done.stderr.strip().splitlines()[-1][:200]}")
    found = {
        item["metadata"]["name"]: item["metadata"]["version"]
        for item in json.loads(report.read_text())["install"]
    }
    assert found["onnxruntime-gpu"].startswith("1.31.")
    # Those that install over each other's files are not to come together.
    assert "onnxruntime" not in found
    majors = {name: version.split(".")[0] for name, version in found.items()}
    assert (majors["nvidia-cublas"], majors["nvidia-cuda-runtime"], majors["nvidia-cudnn-cu13"]) == (
        "13",
        "13",
        "9",
    )
    assert majors["nvidia-curand"] == "10"
    assert int(majors["cuda-core"]) >= 1
