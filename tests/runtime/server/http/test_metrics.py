"""Metrics in Prometheus' format."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sd2rt.runtime.server.generation import ModelInfo, TaskInfo
from sd2rt.runtime.server.http.metrics import Metrics, WorkerFacts
from sd2rt.runtime.server.worker_stats import WorkerStats

NAMES = {
    "sd2rt_requests",
    "sd2rt_requests_running",
    "sd2rt_requests_waiting",
    "sd2rt_rejected",
    "sd2rt_request_duration_seconds",
    "sd2rt_queue_duration_seconds",
    "sd2rt_stage_duration_seconds",
    "sd2rt_batch_size",
    "sd2rt_image_steps",
    "sd2rt_images",
    "sd2rt_cancelled",
    "sd2rt_nonfinite",
    "sd2rt_worker_restarts",
    "sd2rt_worker_up",
    "sd2rt_step_cost_seconds",
    "sd2rt_device_memory_bytes",
    "sd2rt_build_info",
    "sd2rt_bundle_info",
}


def filled() -> str:
    stats = WorkerStats(
        up={"cpu": True},
        restarts={"died": 2},
        image_steps=7,
        images=3,
        nonfinite={"step": 1},
        batches={1: 5, 3: 2, 100: 1},
        step_seconds={1: 0.5, 2: 0.75},
        device_memory_bytes={"cpu": 10},
    )
    info = ModelInfo(
        "demo", "base", {"text-to-image": TaskInfo(25, 4)}, 128, 128, "fp32", "ab" * 32, "", 1, 1
    )
    metrics = Metrics(lambda: WorkerFacts(stats, {"demo": info}))
    metrics.requests.labels("generations", "demo", "ok").inc()
    metrics.rejected.labels("queue_full").inc()
    metrics.request_seconds.labels("generations").observe(0.3)
    metrics.stage_seconds.labels("step").observe(0.2)
    metrics.queue_seconds.observe(0.1)
    metrics.cancelled.labels("disconnected").inc()
    return metrics.text().decode()


def test_names_and_values() -> None:
    families = {family.name: family for family in text_string_to_metric_families(filled())}
    assert families.keys() >= NAMES
    sizes = {
        sample.labels.get("le"): sample.value
        for sample in families["sd2rt_batch_size"].samples
        if sample.name.endswith("_bucket")
    }
    assert sizes["1"] == sizes["2"] == 5
    assert sizes["4"] == 7
    assert sizes["+Inf"] == 8
    (steps,) = families["sd2rt_image_steps"].samples
    assert (steps.name, steps.value) == ("sd2rt_image_steps_total", 7)
    costs = {sample.labels["batch"]: sample.value for sample in families["sd2rt_step_cost_seconds"].samples}
    assert costs == {"1": 0.5, "2": 0.75}


def test_promtool_finds_nothing() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=filled(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
