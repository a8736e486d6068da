"""Recorded timelines of images, and their Chrome traces."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.engines.errors import EngineError
from sd2rt.engines.onnxruntime.engine import OnnxRuntimeEngine
from sd2rt.runtime import Pipeline
from sd2rt.runtime.bench.chrome_trace import chrome_trace, nvtx_ranges
from sd2rt.runtime.bench.onnxruntime_profile import read_profile
from sd2rt.runtime.bench.recording import make_images, step_times
from sd2rt.runtime.bench.timed_pipeline import TimedPipeline
from sd2rt.runtime.bench.timeline import Span, Timeline
from sd2rt.runtime.bench.workload import Workload

from ..conftest import Command

pytestmark = pytest.mark.usefixtures("here", "quick_opening")
SIZE = (64, 64)


@pytest.fixture
def pipeline(small_bundle: Path) -> Iterator[TimedPipeline]:
    with TimedPipeline.open(small_bundle, threads=1) as opened:
        yield opened


def workload(pipeline: Pipeline) -> Workload:
    return Workload(pipeline.manifest, "a fox", 1, {"num_inference_steps": 3, "sampler": "euler"})


def ignored(progress: object) -> None:
    return


def begin(event: dict[str, Any]) -> int:
    at: float = event["ts"]
    return round(at * 1000)


def end(event: dict[str, Any]) -> int:
    """In whole nanoseconds, like the clock, because sums of fractions would be inexact."""
    taken: float = event["dur"]
    return begin(event) + round(taken * 1000)


def inside(inner: dict[str, Any], outer: dict[str, Any]) -> bool:
    return begin(outer) <= begin(inner) and end(inner) <= end(outer)


def test_trace_of_an_image(sd2rt: Command, small_bundle: Path, here: Path) -> None:
    words = ("--threads", "1", "--repetitions", "1", "--no-first-image", "--profile", "trace.json", "--json")
    said = sd2rt("bench", small_bundle, "--steps", "3", "--sampler", "euler", *words)
    assert said.code == 0, said.err
    trace = json.loads((here / "trace.json").read_text())
    assert trace["otherData"]["bundle"] == json.loads(said.out)["bundle"]
    metadata = [event for event in trace["traceEvents"] if event["ph"] == "M"]
    assert [event["args"]["name"] for event in metadata][:2] == ["sd2rt", "host"]
    assert len({event["pid"] for event in trace["traceEvents"]}) == 1
    host = metadata[0]["tid"]
    events = [event for event in trace["traceEvents"] if event["ph"] == "X" and event["tid"] == host]
    # What begins within another event ends within it.
    around: list[dict[str, Any]] = []
    for event in events:
        while around and begin(event) >= end(around[-1]):
            around.pop()
        assert event["dur"] >= 0
        assert not around or inside(event, around[-1]), (event, around[-1])
        around.append(event)
    assert events[0]["name"] == "images"
    assert (events[0]["ts"], all(inside(event, events[0]) for event in events)) == (0, True)
    names = [event["name"] for event in events]
    assert {
        "prepare",
        "text",
        "tokenise",
        "steps",
        "settle",
        "decode",
        "decoder",
        "launch decoder",
        "png",
    } <= {*names}
    # The prompt and the empty negative prompt, although the warm-up already encoded them.
    assert names.count("launch text_encoder") == names.count("tokenise") == 2
    steps = [event for event in events if event["name"] == "step"]
    assert len(steps) == 3
    for step in steps:
        parts = [event for event in events if inside(event, step) and event is not step]
        named = [event["name"] for event in parts]
        assert (named[0], named[-1]) == ("host before", "host after")
        assert named.count("launch denoiser") == 1
        assert sum(end(event) - begin(event) for event in parts) == end(step) - begin(step)


def test_operators_lie_in_the_launches_of_their_part(sd2rt: Command, small_bundle: Path, here: Path) -> None:
    words = ("--threads", "1", "--repetitions", "1", "--no-first-image", "--profile", "trace.json", "--quiet")
    said = sd2rt("bench", small_bundle, "--steps", "3", "--sampler", "euler", *words)
    assert said.code == 0, said.err
    assert [path.name for path in here.iterdir()] == ["trace.json"]
    trace = json.loads((here / "trace.json").read_text())
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    rows = {
        event["args"]["name"].split(",")[0]: event["tid"]
        for event in trace["traceEvents"]
        if event["ph"] == "M" and event["name"] == "thread_name"
    }
    assert set(rows) == {"host", "text_encoder", "denoiser", "decoder"}
    assert trace["otherData"]["operators"] == {
        part: {"launches": count, "recorded": count}
        for part, count in (("text_encoder", 2), ("denoiser", 3), ("decoder", 1))
    }
    for part in ("text_encoder", "denoiser", "decoder"):
        launches = [event for event in events if event["name"] == f"launch {part}"]
        operators = [event for event in events if event["tid"] == rows[part]]
        within = [[o for o in operators if inside(o, launch)] for launch in launches]
        # Each operator lies in one launch, all launches run the same graph, and operators do not overlap.
        assert sum(map(len, within)) == len(operators)
        assert len({tuple(o["name"] for o in each) for each in within}) == 1
        assert all(end(a) <= begin(b) for a, b in itertools.pairwise(operators))
        kinds = {event["cat"] for event in operators}
        assert {"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "FusedConv", "Conv"} & kinds, kinds
        assert all(event["args"]["provider"] == "CPUExecutionProvider" for event in operators)


def test_a_backend_that_does_not_say_when_its_operators_ran(
    sd2rt: Command, small_bundle: Path, here: Path
) -> None:
    pytest.importorskip("openvino")
    words = ("--threads", "1", "--repetitions", "1", "--no-first-image", "--profile", "trace.json", "--quiet")
    said = sd2rt("bench", small_bundle, "--steps", "1", "--backend", "openvino", *words)
    assert said.code == 0, said.err
    trace = json.loads((here / "trace.json").read_text())
    assert trace["otherData"]["operators"] is None
    assert len({event["tid"] for event in trace["traceEvents"]}) == 1
    assert sum(event["name"] == "launch denoiser" for event in trace["traceEvents"]) == 1


def test_runs_of_another_clock_are_put_into_their_launches(tmp_path: Path) -> None:
    """The profile's clock has another origin and drifts; the first run is a warm-up, the last was not recorded."""
    path = tmp_path / "profile.json"
    kernel = {"cat": "Node", "ph": "X", "dur": 30, "args": {"op_name": "Conv", "mem_in_use_peak": "5"}}
    run = {"cat": "Session", "ph": "X", "name": "model_run", "dur": 100, "args": {}}
    events = [run | {"ts": ts} for ts in (7000, 1000, 3000)]
    events += [kernel | {"ts": ts, "name": f"{ts}_kernel_time"} for ts in (7010, 7060, 1010, 3020)]
    events += [kernel | {"ts": 3020, "name": "3020_fence_before"}]
    path.write_text(json.dumps(events))
    launches = [Span("launch", "denoiser", at, at + 120_000) for at in (50_000_000, 90_000_000, 95_000_000)]
    profile = read_profile(path, 1, launches)
    assert (profile.launches, profile.recorded) == (3, 2)
    assert [(operator.name, operator.start, operator.end) for operator in profile.operators] == [
        ("3020", 50_030_000, 50_060_000),
        ("7010", 90_020_000, 90_050_000),
        ("7060", 90_070_000, 90_100_000),
    ]
    assert profile.operators[0].args == {"op_name": "Conv"}
    with pytest.raises(ValueError, match="the profile has 3 runs, but there were 2 launches"):
        read_profile(path, 1, launches[:1])


def test_nothing_is_recorded_unless_asked_for(small_bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(small_bundle)
    part = opened.part("text_encoder")
    path = opened.file(part.onnxruntime)
    with OnnxRuntimeEngine(part, path, threads=1) as engine:
        assert engine.end_profile() is None
    with OnnxRuntimeEngine(part, path, threads=1, profile=tmp_path / "text") as engine:
        engine.session({"B": 1}).launch()
        written = engine.end_profile()
        assert written is not None
        assert [written] == list(tmp_path.glob("text*"))
        assert engine.end_profile() is None


def test_recording_changes_no_pixel(pipeline: TimedPipeline, small_bundle: Path) -> None:
    options: dict[str, Any] = {"num_inference_steps": 3, "seed": 3, "output_type": "np"}
    with Pipeline.open(small_bundle, threads=1) as plain:
        expected = plain("a fox", **options).images
    assert np.array_equal(pipeline("a fox", **options).images, expected)


def test_texts_are_encoded_anew(pipeline: TimedPipeline) -> None:
    for _ in range(2):
        spans = make_images(pipeline, workload(pipeline), SIZE, 2, ignored).spans
        # Two prompts, and one negative for both.
        assert [span.detail for span in spans if span.name == "launch"].count("text_encoder") == 3


def test_warm_up_stops_early(pipeline: TimedPipeline) -> None:
    batch = make_images(pipeline, workload(pipeline), SIZE, 2, ignored, calls=2)
    assert (len(batch.steps), batch.iterations) == (2, 4)
    assert batch.stages()["decode"] > 0
    batch = make_images(pipeline, workload(pipeline), SIZE, 1, ignored, calls=9)
    assert (len(batch.steps), batch.iterations) == (3, 3)


class RecordedRanges:
    """Records the ranges that are open and those that were closed."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.closed: list[str] = []

    def push_range(self, message: str) -> None:
        self.open.append(message)

    def pop_range(self) -> None:
        self.closed.append(self.open.pop())


def test_ranges_follow_the_record(pipeline: TimedPipeline) -> None:
    pipeline.timeline.ranges = recorded = RecordedRanges()
    spans = make_images(pipeline, workload(pipeline), SIZE, 1, ignored).spans
    # A step is known to be the last only when it ends: the final range named step becomes the settle span.
    names = [f"{span.name} {span.detail}".strip().replace("settle", "step") for span in spans]
    assert (recorded.open, recorded.closed) == ([], names)


def test_ranges_end_where_an_error_does(pipeline: TimedPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.timeline.ranges = recorded = RecordedRanges()
    monkeypatch.setattr(
        "sd2rt.runtime.rng.torch_cpu.Generator.randn", lambda self, shape: np.full(shape, np.nan)
    )
    with pytest.raises(EngineError, match="not finite"):
        make_images(pipeline, workload(pipeline), SIZE, 1, ignored)
    assert recorded.open == []
    assert {"images", "decode"} <= {*recorded.closed}


def test_nvtx_where_it_is_installed() -> None:
    ranges = nvtx_ranges()
    if ranges is not None:
        ranges.push_range("a range")
        ranges.pop_range()
    assert (ranges is None) == (not _installed("nvtx"))


def _installed(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def test_pieces_of_a_step() -> None:
    spans = [
        Span("launch", "denoiser", 1200, 1700),
        Span("wait", "denoiser", 1800, 1900),
        Span("step", "", 1000, 2000),
    ]
    events = [event for event in chrome_trace(spans, {})["traceEvents"] if event["ph"] == "X"]
    assert [(event["name"], event["ts"], event["dur"]) for event in events] == [
        ("step", 0.0, 1.0),
        ("host before", 0.0, 0.2),
        ("launch denoiser", 0.2, 0.5),
        ("host between", 0.7, 0.1),
        ("wait denoiser", 0.8, 0.1),
        ("host after", 0.9, 0.1),
    ]
    [step] = step_times(spans)
    assert (step.nanoseconds, step.launch, step.host) == (1000, 500, 500)


def test_steps_without_their_launches() -> None:
    with pytest.raises(ValueError, match="0 launches were recorded in 1 steps"):
        step_times([Span("step", "", 0, 1)])


def test_timeline_keeps_what_an_error_leaves() -> None:
    timeline = Timeline()
    with pytest.raises(KeyError), timeline.span("outer"), timeline.span("inner", "part"):
        raise KeyError
    inner, outer = timeline.take()
    assert (inner.name, inner.detail, outer.name) == ("inner", "part", "outer")
    assert outer.start <= inner.start <= inner.end <= outer.end
    assert timeline.take() == []
