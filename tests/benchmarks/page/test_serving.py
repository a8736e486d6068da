"""The page on serving: a result rendered, bounds that are missed shown as such."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.page import serving
from benchmarks.page.latest import Results

MACHINE = {"date": "2030-01-02T00:00:00+00:00", "commit": "c" * 40, "cores": 2, "cpu": "some"}


def spread(value: float) -> dict[str, float]:
    return {"median": value, "min": value, "max": value}


def result(ratio: float = 1.05, grown: int = 1 << 20) -> dict[str, Any]:
    resources = {"rss_bytes": 50 << 20, "descriptors": 10, "threads": 5}
    return {
        "benchmark": "serving",
        "machine": MACHINE,
        "complete": True,
        "bounds": {
            "ratio": 1.1,
            "front_bytes": 80 << 20,
            "ready_seconds": 3.0,
            "cancel_extra_seconds": 0.05,
            "down_seconds": 1.0,
            "again_seconds": 5.0,
            "goodput": 0.9,
            "livez_seconds": 0.1,
            "growth_bytes": 50 << 20,
            "slow_ratio": 1.2,
        },
        "starts": {"ready_seconds": spread(2.0), "front_bytes": spread(60 << 20)},
        "latency": {"steps": 25, "ratio": spread(ratio)},
        "cancel": {"step_seconds": 0.01, "free_seconds": spread(0.02)},
        "slow": {"clients": 200, "ratio": spread(1.01)},
        "kill": {"down_seconds": spread(0.1), "again_seconds": spread(2.0)},
        "overload": {
            "times": 4.0,
            "seconds": 60,
            "capacity": 3.0,
            "goodput": 0.95,
            "statuses": {"200": 100, "429 queue_full": 300},
            "livez_seconds": {"p99": 0.02},
        },
        "growth": {
            "requests": 1000,
            "before": {"front": resources, "worker": resources},
            "after": {
                "front": resources,
                "worker": {**resources, "rss_bytes": resources["rss_bytes"] + grown},
            },
        },
    }


def page_of(folder: Path, value: dict[str, Any]) -> str:
    (folder / "serving.json").write_text(json.dumps(value))
    return serving.page(Results(folder), folder)


def test_a_page_of_a_result(tmp_path: Path) -> None:
    page = page_of(tmp_path, result())
    assert "| HTTP over the Python API | <= 1.10 | 1.05 | yes |" in page
    assert "| front process | <= 80 MiB | 60 MiB | yes |" in page
    assert "429 queue_full" in page
    assert "$" not in page
    assert "**no**" not in page
    assert "| 413 | `body_too_large`, `too_many_pixels` |" in page
    assert "`sd2rt_images_total`" in page


def test_what_is_missed_is_shown(tmp_path: Path) -> None:
    page = page_of(tmp_path, result(ratio=1.2, grown=60 << 20))
    assert "| HTTP over the Python API | <= 1.10 | 1.20 | **no** |" in page
    assert "60.0 MiB, descriptors and threads do not grow | **no** |" in page


def test_a_page_without_a_result(tmp_path: Path) -> None:
    page = serving.page(Results(tmp_path), tmp_path)
    assert "Not measured yet: no result of serving." in page
    assert "$" not in page


def test_load_at_several_rates(tmp_path: Path) -> None:
    latency = {"p50": 0.1, "p90": 0.2, "p99": 0.3, "mean": 0.12, "max": 0.4}
    case = {
        "rate": 2.0,
        "load": 0.5,
        "requests": 60,
        "statuses": {"200": 58, "429 queue_full": 2},
        "good": 0.95,
        "images_per_second": 1.9,
        "latency_seconds": latency,
    }
    value = {
        "benchmark": "bench-serve",
        "machine": MACHINE,
        "settings": {"model": "demo", "steps": [4, 20, 20], "objective": 3.0},
        "alone": [{"steps": 4, "seconds": 0.05}, {"steps": 20, "seconds": 0.25}],
        "serial_rate": 4.0,
        "cases": [
            case,
            {**case, "rate": 8.0, "load": 2.0, "statuses": {}, "good": 0.0, "latency_seconds": None},
        ],
    }
    page = page_of(tmp_path, value)
    assert "demo, each request of 4 or 20 steps; alone 4 steps 0.0500 s, 20 steps 0.250 s" in page
    assert "| 2 | 0.50 | 60 | 95.0% | 1.90 | 0.100 s | 0.200 s | 0.300 s | 2 429 queue_full |" in page
    assert "| 8 | 2.00 | 60 | 0.0% | 1.90 |  |  |  | none |" in page
