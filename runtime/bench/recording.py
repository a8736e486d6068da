"""Images made on a timeline: the whole of it, and what the record says of each stage and step."""

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
from sd2rt.runtime.pipeline.run import Progress, Run

IMAGES, PREPARE, STEPS, STEP, SETTLE, DECODE, PNG = (
    "images", "prepare", "steps", "step", "settle", "decode", "png",
)  # fmt: skip
STAGES = (TOKENISE, TEXT, "encode", PREPARE, STEPS, DECODE, PNG)
"""In the order of their first work; each without those that run within it. Their sum is the whole."""

Told = Callable[[Progress], None]


class StepTime(NamedTuple):
    """One denoiser call, from being asked for to its yield."""

    nanoseconds: int
    launch: int
    """Those of them that were spent in ``session.launch()``."""

    @property
    def host(self) -> int:
        """Those that were not."""
        return self.nanoseconds - self.launch


@dataclass(frozen=True, slots=True)
class Made:
    """Images that were made at once."""

    spans: list[Span]
    iterations: int
    """Denoiser calls, each counted once for every image, or tile, in it."""

    @property
    def seconds(self) -> float:
        """From the request to the last image's PNG."""
        return self._sum(IMAGES)

    @property
    def steps(self) -> list[StepTime]:
        return step_times(self.spans)

    def stages(self) -> dict[str, float]:
        """Seconds of each of :data:`STAGES`."""
        encode, text = self._sum(ENCODER) + self._sum(DEPTH), self._sum(TEXT)
        found = {name: self._sum(name) for name in (TOKENISE, STEPS, DECODE, PNG)}
        found |= {TEXT: text - found[TOKENISE], "encode": encode}
        # What is left is planning, noise and bookkeeping.
        found[PREPARE] = self.seconds - sum(found.values())
        return {name: found[name] for name in STAGES}

    def _sum(self, name: str) -> float:
        return sum(span.nanoseconds for span in self.spans if span.name == name) / 1e9


def make_images(
    pipeline: TimedPipeline, workload: Workload, size: Size, count: int, told: Told, calls: int | None = None
) -> Made:
    """Make images as `sd2rt run` does, texts encoded anew, PNG files encoded and not written.

    Args:
        told: called after each step.
        calls: stop after so many denoiser calls, and go on from there; None for all of them.

    Raises:
        RequestError: a request cannot be honoured.
        EngineError: the device failed, or an image is not finite.
    """
    pipeline.forget()
    timeline = pipeline.timeline
    timeline.take()
    with timeline.span(IMAGES):
        with timeline.span(PREPARE):
            run = pipeline.stream_requests(workload.requests(size, count))
        with run:
            with timeline.span(STEPS):
                done = make_steps(timeline, run, told, calls)
            with timeline.span(DECODE):
                outputs = run.result() if calls is None else run.stop()
        with timeline.span(PNG):
            for output in outputs:
                for image in output.images:
                    write_png(image, BytesIO(), {})
    return Made(timeline.take(), done)


def make_steps(timeline: Timeline, run: Run, told: Told, calls: int | None = None) -> int:
    """Make a run's steps, each a span; returns how many over all its images."""
    steps, done, made = iter(run), 0, 0
    while made != calls:
        if timeline.ranges is not None:
            timeline.ranges.push_range(STEP)
        start = perf_counter_ns()
        progress = next(steps, None)
        end = perf_counter_ns()
        if timeline.ranges is not None:
            timeline.ranges.pop_range()
        if progress is None:
            # Where steps are enqueued only, this is where the last of them end.
            timeline.add((SETTLE, "", start, end))
            break
        timeline.add((STEP, "", start, end))
        done, made = progress.done, made + 1
        told(progress)
    return done


def step_times(spans: Sequence[Span]) -> list[StepTime]:
    """Every step of a record, in order."""
    steps = [span for span in spans if span.name == STEP]
    launches = [span for span in spans if span.name == LAUNCH and span.detail == "denoiser"]
    if len(launches) != len(steps):
        raise ValueError(
            f"{len(launches)} launches were recorded in {len(steps)} steps: give those of whole runs"
        )
    return [
        StepTime(step.nanoseconds, launch.nanoseconds) for step, launch in zip(steps, launches, strict=True)
    ]
