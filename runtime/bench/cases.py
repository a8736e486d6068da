"""Measure a case: repeat the same images and summarise the time of each stage."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sd2rt.engines.cuda.gpu_info import device_memory
from sd2rt.engines.interface import Device
from sd2rt.runtime.bench.memory import peak_rss_bytes, reset_peak
from sd2rt.runtime.bench.recording import STAGES, RecordedBatch, make_images
from sd2rt.runtime.bench.summary import digits, summary
from sd2rt.runtime.bench.timed_pipeline import TimedPipeline
from sd2rt.runtime.bench.workload import Size, Workload
from sd2rt.runtime.pipeline.progress import Progress

WARM_CALLS = 3
"""Denoiser calls of a warm-up: the first runs eagerly, the second captures a CUDA graph, if supported."""

Tell = Callable[[str, Progress | None], None]
"""Progress callback: called with a label, and after each step with its progress."""


@dataclass(frozen=True, slots=True)
class Case:
    """Image size and batch size to measure."""

    size: Size
    batch: int

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]} x {self.batch}"


def measure_case(
    pipeline: TimedPipeline,
    workload: Workload,
    case: Case,
    device: Device,
    *,
    repetitions: int,
    warmup: int,
    tell: Tell,
) -> dict[str, Any]:
    """Warm up, then measure a case ``repetitions`` times. Stage times are seconds of the whole batch.

    Raises:
        RequestError: the request is not supported.
        EngineError: the device failed, or an image is not finite.
    """
    peak_was_reset = reset_peak()

    def run(label: str, calls: int | None = None) -> RecordedBatch:
        # Collect now, so that garbage of earlier work is not collected while timing.
        gc.collect()
        return make_images(
            pipeline,
            workload,
            case.size,
            case.batch,
            lambda progress: tell(f"{case}, {label}", progress),
            calls,
        )

    warm = [run(f"warm-up {turn + 1} of {warmup}", WARM_CALLS) for turn in range(warmup)]
    batches = [run(f"repetition {turn + 1} of {repetitions}") for turn in range(repetitions)]
    used = device_memory(device.index) if device.kind == "cuda" else None
    return {
        "width": case.size[0],
        "height": case.size[1],
        "batch": case.batch,
        "calls": len(batches[0].steps),
        "iterations_per_image": batches[0].iterations // case.batch,
        "warmup": _warmup(warm),
        **_rates(batches, case.batch),
        "stages": _stages(batches),
        **_steps(batches),
        "peak_rss_bytes": peak_rss_bytes() if peak_was_reset else None,
        "device_bytes": None if used is None else used[0],
    }


def _warmup(warm: Sequence[RecordedBatch]) -> dict[str, Any] | None:
    """Summarise the warm-up, which allocates buffers and, on some backends, compiles or selects kernels."""
    if not warm:
        return None
    return {
        "calls": len(warm[0].steps),
        "seconds": digits(sum(each.seconds for each in warm)),
        "first_step_seconds": digits(warm[0].steps[0].nanoseconds / 1e9),
    }


def _rates(batches: Sequence[RecordedBatch], batch: int) -> dict[str, Any]:
    loops = [each.stages()["steps"] for each in batches]
    return {
        "it_per_second": summary(
            each.iterations / seconds for each, seconds in zip(batches, loops, strict=True)
        ),
        "images_per_second": summary(batch / each.seconds for each in batches),
        "seconds_per_image": summary(each.seconds / batch for each in batches),
        # Time of the whole loop, including the wait for the device at its end, unlike seconds_per_yield.
        "seconds_per_step": summary(
            seconds / len(each.steps) for each, seconds in zip(batches, loops, strict=True)
        ),
    }


def _stages(batches: Sequence[RecordedBatch]) -> dict[str, Any]:
    stages = [each.stages() for each in batches]
    summaries = {name: summary(each[name] for each in stages) for name in STAGES}
    # Omit stages that did not run, such as encoding in text-to-image.
    return {name: each for name, each in summaries.items() if each["max"] > 0}


def _steps(batches: Sequence[RecordedBatch]) -> dict[str, Any]:
    """Summarise the steps of all repetitions, and the host's time per step.

    The first step of each repetition also enters the session, so its host time is reported separately.
    """
    steps = [step for each in batches for step in each.steps]
    later = [step for each in batches for step in each.steps[1:]]
    result: dict[str, Any] = {
        "seconds_per_yield": summary(step.nanoseconds / 1e9 for step in steps),
        "first_host_us": summary(each.steps[0].host / 1e3 for each in batches),
    }
    if later:
        result |= {
            "host_us": summary(step.host / 1e3 for step in later),
            "launch_us": summary(step.launch / 1e3 for step in later),
        }
    return result
