"""Speed of a backend's steps and images, with and without CUDA graphs, in alternating turns."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.bundles import bundle_of, sides
from benchmarks.gpu.counts import floor_ms
from benchmarks.gpu.device import DeviceClock, host_bytes, used_bytes
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.stage import Record
from benchmarks.gpu.timing import interleaved, ratios, spread
from benchmarks.recording import process
from sd2rt.engines.bundle.engine_entry import BackendName
from sd2rt.engines.errors import Sd2rtError
from sd2rt.runtime import Pipeline

GUIDANCE = 7.5


def measure(settings: Settings, variant: str, backend: BackendName) -> Iterator[Record]:
    """Per size: first image, memory, steps at each batch size, whole images."""
    path = bundle_of(settings, variant)
    for side in sides(settings, variant):
        yield from _first_images(settings, path, backend, side)
        yield from _opened(settings, path, backend, side)


def _first_images(settings: Settings, path: Path, backend: BackendName, side: int) -> Iterator[Record]:
    """First image of two processes: TensorRT for RTX compiles kernels in the first and caches them for the second."""
    for time_of in ("first process", "second process"):
        command = [sys.executable, "-m", "benchmarks.gpu.first_image", str(path), backend, settings.device]
        try:
            measured = process.measure([*command, str(side), str(settings.steps)], dict(os.environ))
        except process.CommandError as error:
            yield {"first_image": time_of, "side": side, "refused": str(error).splitlines()[-1]}
            return
        times = json.loads(measured.stdout.splitlines()[-1])
        yield {
            "first_image": time_of,
            "side": side,
            "steps": settings.steps,
            "process_s": round(measured.seconds, 3),
            **{name: round(seconds, 3) for name, seconds in times.items()},
            "host_peak_gb": measured.peak_rss_bytes / 1e9,
            "host_peak_anonymous_gb": measured.peak_anonymous_bytes / 1e9,
        }


def _opened(settings: Settings, path: Path, backend: BackendName, side: int) -> Iterator[Record]:
    modes = {"graph": True, "no graph": False} if settings.device == "cuda" else {"cpu": False}
    # ONNX Runtime runs without a graph by default, so that mode is the base of the ratios.
    if backend == "onnxruntime" and settings.device == "cuda":
        modes = {"no graph": False, "graph": True}
    pipelines: dict[str, Pipeline] = {}
    largest_batch = max(settings.batches)
    with ExitStack() as stack:
        for mode, graph in modes.items():
            before = used_bytes()
            try:
                opened = Pipeline.open(
                    path, device=settings.device, backend=backend, cuda_graph=graph, max_batch=largest_batch
                )
                pipelines[mode] = stack.enter_context(opened)
                after_open = used_bytes()
                _image(pipelines[mode], side, settings.steps)
            except Sd2rtError as error:
                yield {"memory": mode, "side": side, "refused": str(error)}
                pipelines.pop(mode, None)
                continue
            after_image = used_bytes()
            yield {
                "memory": mode,
                "side": side,
                "device_before_gb": _gb(before),
                "device_opened_gb": _gb(after_open),
                "device_after_image_gb": _gb(after_image),
                "host_now_gb": host_bytes()["now"] / 1e9,
                "host_peak_gb": host_bytes()["peak"] / 1e9,
            }
        for batch in settings.batches:
            yield from _steps_of(settings, pipelines, side, batch)
        yield from _images_of(settings, pipelines, side)


def _steps_of(settings: Settings, pipelines: dict[str, Pipeline], side: int, batch: int) -> Iterator[Record]:
    accepting: dict[str, Pipeline] = {}
    for mode, pipeline in pipelines.items():
        try:
            step_seconds(pipeline, side, batch, 3)
            accepting[mode] = pipeline
        except Sd2rtError as error:
            yield {"steps": mode, "side": side, "batch": batch, "refused": str(error)}
    if not accepting:
        return
    device: dict[str, float | None] = {}
    for mode, pipeline in accepting.items():
        with DeviceClock() as clock:
            step_seconds(pipeline, side, batch, settings.steps, clock)
            launches = clock.take().get("denoiser")
        device[mode] = statistics.median(launches) if launches else None
    turns = {
        mode: partial(step_seconds, pipeline, side, batch, settings.steps)
        for mode, pipeline in accepting.items()
    }
    seconds_by_mode = interleaved(turns, settings.rounds)
    lower_bound = floor_ms(settings.folder / "records" / "facts.jsonl", side, batch)
    first = next(iter(seconds_by_mode))
    for mode, seconds in seconds_by_mode.items():
        wall, device_ms = statistics.median(seconds) * 1e3, device[mode]
        yield {
            "steps": mode,
            "side": side,
            "batch": batch,
            "it_s": spread((batch / s for s in seconds), 3),
            "wall_ms": spread(s * 1e3 for s in seconds),
            "device_ms": device_ms,
            "host_gap_ms": None if device_ms is None else wall - device_ms,
            "floor_ms": lower_bound,
            "roofline_share": None if lower_bound is None else lower_bound / wall,
            f"times_of_{first.replace(' ', '_')}": ratios(seconds_by_mode[first], seconds),
        }


def _images_of(settings: Settings, pipelines: dict[str, Pipeline], side: int) -> Iterator[Record]:
    turns = {mode: partial(_image, pipeline, side, settings.steps) for mode, pipeline in pipelines.items()}
    for mode, seconds in interleaved(turns, max(3, settings.rounds // 2)).items():
        with DeviceClock() as clock:
            _image(pipelines[mode], side, settings.steps)
            parts = {part: round(sum(taken), 3) for part, taken in clock.take().items()}
        yield {
            "images": mode,
            "side": side,
            "steps": settings.steps,
            "seconds": spread(seconds),
            "device_ms_by_part": parts or None,
        }


def step_seconds(
    pipeline: Pipeline, side: int, batch: int, steps: int, clock: DeviceClock | None = None
) -> float:
    """Mean wall time of a denoiser call in the loop with guided images; starts after the first call has finished."""
    prompts = [f"lighthouse number {index}" for index in range(batch)]
    with pipeline.stream(
        prompts,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        seed=1,
        width=side,
        height=side,
        output_type="latent",
    ) as run:
        calls = iter(run)
        next(calls).latents()
        if clock is not None:
            clock.take()
        began = time.perf_counter()
        # The loop ends only when the device has finished.
        count = sum(1 for _ in calls)
        return (time.perf_counter() - began) / count


def _image(pipeline: Pipeline, side: int, steps: int) -> float:
    options: dict[str, Any] = {"num_inference_steps": steps, "width": side, "height": side}
    began = time.perf_counter()
    pipeline("a lighthouse on a cliff", seed=1, guidance_scale=GUIDANCE, **options)
    return time.perf_counter() - began


def _gb(count: int | None) -> float | None:
    return None if count is None else count / 1e9
