"""Generate images while recording a timeline, and derive the time of each stage and step from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from time import perf_counter_ns
from typing import NamedTuple

from sd2rt.runtime.bench.timed_engine import LAUNCH
from sd2rt.runtime.bench.timed_pipeline import DEPTH, ENCODER, TEXT, TOKENISE, TimedPipeline
from sd2rt.runtime.bench.timeline import Span, Timeline
from sd2rt.runtime.bench.workload import Size, Workload
from sd2rt.runtime.images.write import write_png
from sd2rt.runtime.pipeline.progress import Progress
from sd2rt.runtime.pipeline.run import Run

IMAGES, PREPARE, STEPS, STEP, SETTLE, DECODE, PNG = (
    "images", "prepare", "steps", "step", "settle", "decode", "png",
)  # fmt: skip
STAGES = (TOKENISE, TEXT, "encode", PREPARE, STEPS, DECODE, PNG)
"""In order of first use. Stages exclude the stages nested in them, so their times add up to the total."""

OnProgress = Callable[[Progress], None]


class StepTime(NamedTuple):
    """Time of one denoiser call, from the request for the next step until it is yielded."""

    nanoseconds: int
    launch: int
    """Nanoseconds of these spent in ``session.launch()``."""

    @property
    def host(self) -> int:
        """Nanoseconds spent outside of ``session.launch()``."""
        return self.nanoseconds - self.launch


@dataclass(frozen=True, slots=True)
class RecordedBatch:
    """Recorded timeline of one batch of images."""

    spans: list[Span]
    iterations: int
    """Denoiser calls times the images, or tiles, in each."""

    @property
    def seconds(self) -> float:
        """Seconds from the request to the last image's PNG."""
        return self._sum(IMAGES)

    @property
    def steps(self) -> list[StepTime]:
        return step_times(self.spans)

    def stages(self) -> dict[str, float]:
        """Return the seconds of each of :data:`STAGES`."""
        encode, text = self._sum(ENCODER) + self._sum(DEPTH), self._sum(TEXT)
        seconds = {name: self._sum(name) for name in (TOKENISE, STEPS, DECODE, PNG)}
        seconds |= {TEXT: text - seconds[TOKENISE], "encode": encode}
        # The rest is planning, noise and bookkeeping.
        seconds[PREPARE] = self.seconds - sum(seconds.values())
        return {name: seconds[name] for name in STAGES}

    def _sum(self, name: str) -> float:
        return sum(span.nanoseconds for span in self.spans if span.name == name) / 1e9


def make_images(
    pipeline: TimedPipeline,
    workload: Workload,
    size: Size,
    count: int,
    on_progress: OnProgress,
    calls: int | None = None,
) -> RecordedBatch:
    """Generate images like `sd2rt run`, without cached text encodings. PNGs are encoded but not written.

    Args:
        on_progress: called after each step.
        calls: number of denoiser calls, after which the latents are decoded as they are; None for all.

    Raises:
        RequestError: a request is not supported.
        EngineError: the device failed, or an image is not finite.
    """
    pipeline.clear_text_cache()
    timeline = pipeline.timeline
    timeline.take()
    with timeline.span(IMAGES):
        with timeline.span(PREPARE):
            run = pipeline.stream_requests(workload.requests(size, count))
        with run:
            with timeline.span(STEPS):
                iterations = run_steps(timeline, run, on_progress, calls)
            with timeline.span(DECODE):
                outputs = run.result() if calls is None else run.stop()
        with timeline.span(PNG):
            for output in outputs:
                for image in output.images:
                    write_png(image, BytesIO(), {})
    return RecordedBatch(timeline.take(), iterations)


def run_steps(timeline: Timeline, run: Run, on_progress: OnProgress, calls: int | None = None) -> int:
    """Run the steps of a run, recording each as a span. Returns the iterations of all images together."""
    steps, iterations, step_count = iter(run), 0, 0
    while step_count != calls:
        if timeline.ranges is not None:
            timeline.ranges.push_range(STEP)
        start = perf_counter_ns()
        progress = next(steps, None)
        end = perf_counter_ns()
        if timeline.ranges is not None:
            timeline.ranges.pop_range()
        if progress is None:
            # If steps are only enqueued, this is the wait for the last of them.
            timeline.add((SETTLE, "", start, end))
            break
        timeline.add((STEP, "", start, end))
        iterations, step_count = progress.done, step_count + 1
        on_progress(progress)
    return iterations


def step_times(spans: Sequence[Span]) -> list[StepTime]:
    """Return the times of all recorded steps, in order."""
    steps = [span for span in spans if span.name == STEP]
    launches = [span for span in spans if span.name == LAUNCH and span.detail == "denoiser"]
    if len(launches) != len(steps):
        raise ValueError(
            f"{len(launches)} launches were recorded in {len(steps)} steps: pass the spans of whole runs"
        )
    return [
        StepTime(step.nanoseconds, launch.nanoseconds) for step, launch in zip(steps, launches, strict=True)
    ]
