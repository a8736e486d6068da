"""The benchmark of forms: what it compares, counts and renders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cuda_forms import GRAPHS, compare, cpu_times
from benchmarks.page.ort_forms import section
from sd2rt.export.graphs.cuda_forms.forms import WITHOUT_CPU_KERNEL


def sessions_of(way: str) -> dict[str, Any]:
    """Measured in a process of its own: memory that another test freed would be used again."""
    command = [sys.executable, "-m", "benchmarks.session_memory", way, "--products", "4"]
    case: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert case["weights_bytes"] == 4 << 24
    return case


def test_a_demo_is_compared_and_rendered(tmp_path: Path) -> None:
    cases = compare("demo", "fp32", tmp_path / "demo")
    assert [case["form"] for case in cases] == [*GRAPHS]
    for case in cases:
        of_the_gpu = bool(set(GRAPHS[case["form"]]) & set(WITHOUT_CPU_KERNEL))
        assert case["by"] == ("onnx.reference" if of_the_gpu else "CPU provider")
        assert 0 <= case["mean_error"] <= case["max_error"] < 1e-5
        rounds = of_the_gpu or "step-sums" in GRAPHS[case["form"]]
        assert (case["max_error"] == 0) is not rounds
        assert (case["operators"] < case["plain_operators"]) is (case["form"] != "step-sums")
        changes = sum(after - before for before, after in case["changed"].values())
        assert changes == case["operators"] - case["plain_operators"]
        assert (case["merged_bytes"] > 0) is bool({"qkv", "cross-kv", "time"} & set(GRAPHS[case["form"]]))
        assert case["stored_merged_bytes"] == 0
    times = cpu_times(tmp_path / "demo", 64, 2)
    assert "nhwc" not in times["ratios"]
    assert all(ratio["low"] <= ratio["median"] <= ratio["high"] for ratio in times["ratios"].values())
    memory = [sessions_of("added-unpacked")]
    # Three sessions take less than one copy of the weights.
    assert sum(memory[0]["session_bytes"]) < memory[0]["weights_bytes"] / 2
    halves = [{**case, "precision": "fp16"} for case in cases]
    text = section({"errors": cases + halves, "cpu_times": [times], "session_memory": memory})
    assert "| attention-3d | 0, to the bit |" in text
    assert "Transpose 70 to 14" in text


@pytest.mark.parametrize("way", ["files", "external"])
def test_sessions_copy_weights(way: str) -> None:
    case = sessions_of(way)
    assert sum(case["session_bytes"]) > 2.5 * case["weights_bytes"]
