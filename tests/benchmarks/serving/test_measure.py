"""The benchmark of the server, with the shortest settings, and its page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.page import serving
from benchmarks.page.latest import Results
from benchmarks.serving import lifecycle, overload
from benchmarks.serving.__main__ import BOUNDS, measure, rows
from sd2rt.engines.demo.build import build_demo

MACHINE = {"date": "2030-01-02T00:00:00+00:00", "commit": "c" * 40, "cores": 2, "cpu": "some"}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    bundle = tmp_path_factory.mktemp("bundle") / "demo"
    build_demo("demo", bundle)
    options = argparse.Namespace(steps=2, pairs=2, seconds=1.0, requests=10, repetitions=1)
    measured = measure(bundle, options)
    return {"benchmark": "serving", "machine": MACHINE, "complete": True, "bounds": BOUNDS, **measured}


def test_everything_is_measured(result: dict[str, Any]) -> None:
    assert result["latency"]["ratio"]["n"] == 2
    assert result["latency"]["ratio"]["median"] > 0
    assert 0 < result["starts"]["front_bytes"]["median"] < result["growth"]["after"]["worker"]["rss_bytes"]
    assert {status[:3] for status in result["overload"]["statuses"]} <= {"200", "429"}
    assert result["overload"]["capacity"] > 0
    assert result["kill"]["down_seconds"]["n"] == 1
    assert len(list(rows(result))) == 11


def test_its_page(result: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "serving.json").write_text(json.dumps(result))
    page = serving.page(Results(tmp_path), tmp_path)
    assert "no result of serving" not in page
    assert "HTTP over the Python API" in page


def test_bounds_are_those_that_are_measured() -> None:
    assert (BOUNDS["goodput"], BOUNDS["ready_seconds"]) == (overload.GOODPUT, lifecycle.READY_SECONDS)
