"""The page on the roof: predictions from counts and rates, and the measured column."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.page import roof
from benchmarks.page.latest import Results
from benchmarks.recording.report import RESULTS


def rows(page: str, start: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith(f"| {start}")
    ]


def page_of(folder: Path, *measured: dict[str, Any]) -> str:
    newest = Results(RESULTS).newest("scheduling")
    shutil.copy(newest.path, folder)
    for index, value in enumerate(measured):
        (folder / f"{index}.json").write_text(json.dumps(value))
    return roof.page(Results(folder), folder)


def bench(date: str, gpu: str, rate: float, **changes: Any) -> dict[str, Any]:
    case = {
        "width": 512,
        "height": 512,
        "batch": 1,
        "it_per_second": {"median": rate, "min": rate, "max": rate},
    }
    return {
        "benchmark": "bench",
        "machine": {"date": date, "gpu": {"name": gpu}},
        "bundle": {"precision": "fp16"},
        "settings": {"guidance_scale": 7.5},
        "cases": [case | changes],
    }


def test_a_step_takes_its_operations_or_its_bytes(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    # 1.6085 TFLOP at 989.4 TFLOP/s; 0.8043 TFLOP and 2.766 GB of an unguided step on an L4 with 0.3 TB/s.
    assert rows(page, "H100, 512")[0][1:3] == ["1.63", "615"]
    (unguided,) = rows(page, "denoiser, 512, unguided")
    assert unguided[-2] == f"{2.766 / 0.3:.2f} ms"
    assert float(unguided[-2].split()[0]) > 0.8043 / 121 * 1e3
    assert rows(page, "H100, 512")[0][-1] == "not yet"


def test_the_newest_measurement_of_each_gpu_is_shown(tmp_path: Path) -> None:
    page = page_of(
        tmp_path,
        bench("2030-01-02T00:00:00", "NVIDIA H100 80GB HBM3", 240.0),
        bench("2030-01-01T00:00:00", "NVIDIA H100 80GB HBM3", 200.0),
        bench("2030-01-03T00:00:00", "NVIDIA H100 80GB HBM3", 700.0, batch=4),
        bench("2030-01-03T00:00:00", "NVIDIA L4", 30.0, width=768, height=768),
    )
    assert rows(page, "H100, 512")[0][-1] == "240"
    assert rows(page, "H100, 768")[0][-1] == "not yet"
    assert [row[-1] for row in rows(page, "L4, ")] == ["not yet", "30"]


@pytest.mark.parametrize("gpu", roof.GPUS, ids=lambda gpu: gpu.name)
def test_rates_are_consistent(gpu: roof.Gpu) -> None:
    assert gpu.half <= gpu.half_sums <= (gpu.fp8 or gpu.int8) <= gpu.int8
