"""Cases measured: the same images again and again, and what each stage of them took."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sd2rt.engines.cuda.gpu_info import device_memory
from sd2rt.engines.interface import Device
from sd2rt.runtime.bench.memory import forget_peak, peak_rss_bytes
from sd2rt.runtime.bench.recording import STAGES, Made, make_images
from sd2rt.runtime.bench.summary import digits, summary
from sd2rt.runtime.bench.timed_pipeline import TimedPipeline
from sd2rt.runtime.bench.workload import Size, Workload
from sd2rt.runtime.pipeline.run import Progress

WARM_CALLS = 3
"""Denoiser calls of a warm-up: the first is enqueued plainly, the second captured where there are CUDA graphs."""

Tell = Callable[[str, Progress | None], None]
"""Told what is being made, after each of its steps."""


@dataclass(frozen=True, slots=True)
class Case:
    """Images of one size, so many at once."""

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
    """One case: warmed up, then measured ``repetitions`` times. Times are of the whole batch, in seconds.

    Raises:
        RequestError: the request cannot be honoured.
        EngineError: the device failed, or an image is not finite.
    """
    counted = forget_peak()

    def made(what: str, calls: int | None = None) -> Made:
        # A collection that earlier work has brought about is not this one's.
        gc.collect()
        return make_images(
            pipeline,
            workload,
            case.size,
            case.batch,
            lambda progress: tell(f"{case}, {what}", progress),
            calls,
        )

    warm = [made(f"warm-up {turn + 1} of {warmup}", WARM_CALLS) for turn in range(warmup)]
    found = [made(f"repetition {turn + 1} of {repetitions}") for turn in range(repetitions)]
    used = device_memory(device.index) if device.kind == "cuda" else None
    return {
        "width": case.size[0],
        "height": case.size[1],
        "batch": case.batch,
        "calls": len(found[0].steps),
        "iterations_per_image": found[0].iterations // case.batch,
        "warmup": _warmup(warm),
        **_rates(found, case.batch),
        "stages": _stages(found),
        **_steps(found),
        "peak_rss_bytes": peak_rss_bytes() if counted else None,
        "device_bytes": None if used is None else used[0],
    }


def _warmup(warm: Sequence[Made]) -> dict[str, Any] | None:
    """The first call of a case allocates its buffers and, on some backends, compiles or chooses its kernels."""
    if not warm:
        return None
    return {
        "calls": len(warm[0].steps),
        "seconds": digits(sum(made.seconds for made in warm)),
        "first_step_seconds": digits(warm[0].steps[0].nanoseconds / 1e9),
    }


def _rates(found: Sequence[Made], batch: int) -> dict[str, Any]:
    loops = [made.stages()["steps"] for made in found]
    return {
        "it_per_second": summary(
            made.iterations / seconds for made, seconds in zip(found, loops, strict=True)
        ),
        "images_per_second": summary(batch / made.seconds for made in found),
        "seconds_per_image": summary(made.seconds / batch for made in found),
        # A trajectory's end is waited for, its yields are not: on a GPU these two differ.
        "seconds_per_step": summary(
            seconds / len(made.steps) for made, seconds in zip(found, loops, strict=True)
        ),
    }


def _stages(found: Sequence[Made]) -> dict[str, Any]:
    stages = [made.stages() for made in found]
    told = {name: summary(each[name] for each in stages) for name in STAGES}
    # Of bundles that encode nothing there is nothing to say.
    return {name: each for name, each in told.items() if each["max"] > 0}


def _steps(found: Sequence[Made]) -> dict[str, Any]:
    """Steps by their yields, those of all repetitions together; the host's share without the first of each.

    The first one enters the session, which later ones do not.
    """
    steps = [step for made in found for step in made.steps]
    later = [step for made in found for step in made.steps[1:]]
    result: dict[str, Any] = {
        "seconds_per_yield": summary(step.nanoseconds / 1e9 for step in steps),
        "first_host_us": summary(made.steps[0].host / 1e3 for made in found),
    }
    if later:
        result |= {
            "host_us": summary(step.host / 1e3 for step in later),
            "launch_us": summary(step.launch / 1e3 for step in later),
        }
    return result
