"""On a simulated GPU, where a yielded step is only enqueued."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sd2rt.runtime.bench.recording import make_images
from sd2rt.runtime.bench.timed_pipeline import TimedPipeline
from sd2rt.runtime.bench.workload import Workload

from ...engines.simulated_gpu import SimulatedGpu
from ...engines.simulated_tensorrt import make_tensorrt
from ..conftest import Command
from ..pipeline.conftest import compiled

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    gpu = SimulatedGpu(pace="lazy", seed=0)
    gpu.install(monkeypatch)
    return gpu


@pytest.fixture
def bundle(gpu: SimulatedGpu, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    module = make_tensorrt(gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return compiled(small_bundle, tmp_path / "bundle", module)


def test_result(sd2rt: Command, bundle: Path, gpu: SimulatedGpu) -> None:
    words = ("--device", "cuda", "--threads", "1", "--steps", "4", "--batch", "1,2", "--repetitions", "2")
    said = sd2rt("bench", bundle, *words, "--no-first-image", "--json")
    assert said.code == 0, said.err
    result = json.loads(said.out)
    assert (result["settings"]["backend"], result["settings"]["device"]) == ("tensorrt", "cuda")
    small, large = result["cases"]
    # Memory in use after a case: its buffers are added to those of the previous case.
    assert 0 < small["device_bytes"] < large["device_bytes"] == result["device_bytes"] < gpu.total_bytes
    for case in (small, large):
        # Only the end of the loop waits for the work of all steps; yields do not.
        assert case["seconds_per_step"]["min"] > case["seconds_per_yield"]["median"]


def test_more_at_once_than_the_engines_take(sd2rt: Command, bundle: Path) -> None:
    said = sd2rt("bench", bundle, "--device", "cuda", "--batch", "1,9", "--no-first-image")
    assert (said.code, said.out) == (2, "")
    assert "--batch 9 is too large: the bundle's engines support at most 8 images at once\n" in said.err


def test_waits_are_recorded(bundle: Path) -> None:
    with TimedPipeline.open(bundle, device="cuda", threads=1) as pipeline:
        workload = Workload(pipeline.manifest, "a fox", 1, {"num_inference_steps": 4, "sampler": "euler"})
        batch = make_images(pipeline, workload, (64, 64), 1, lambda progress: None)
    [settle] = [span for span in batch.spans if span.name == "settle"]
    waits = [span for span in batch.spans if span.name == "wait"]
    assert {span.detail for span in waits} == {"text_encoder", "denoiser", "decoder"}
    within = [span for span in waits if settle.start <= span.start and span.end <= settle.end]
    assert [span.detail for span in within] == ["denoiser"] * len(within)
    assert within
