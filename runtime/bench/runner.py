"""Run `sd2rt bench`: first images in new processes, then all cases in this process, then an optional profile."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sd2rt.engines.bundle.engine_entry import BackendName
from sd2rt.engines.bundle.manifest import Manifest, read_manifest
from sd2rt.engines.bundle.reader import locate
from sd2rt.engines.bundle.schema import ComputePrecision
from sd2rt.engines.errors import RequestError
from sd2rt.engines.interface import Device
from sd2rt.runtime.bench import machine
from sd2rt.runtime.bench.cases import WARM_CALLS, Case, Tell, measure_case
from sd2rt.runtime.bench.chrome_trace import chrome_trace, nvtx_ranges
from sd2rt.runtime.bench.comparison import NAME
from sd2rt.runtime.bench.first_image import first_images
from sd2rt.runtime.bench.memory import peak_rss_bytes
from sd2rt.runtime.bench.onnxruntime_profile import ProfiledPipeline
from sd2rt.runtime.bench.recording import make_images
from sd2rt.runtime.bench.summary import digits
from sd2rt.runtime.bench.timed_pipeline import TimedPipeline
from sd2rt.runtime.bench.timeline import Span
from sd2rt.runtime.bench.whole_file import write_whole
from sd2rt.runtime.bench.workload import Size, Workload
from sd2rt.runtime.request.sampling import sampler_of, sampling_of

PipelineType = TypeVar("PipelineType", bound=TimedPipeline)


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a benchmark."""

    bundle: str
    prompt: str
    seed: int
    request: dict[str, Any]
    """Fields of every request; None uses the bundle's default."""
    sizes: tuple[Size, ...]
    """Empty uses the bundle's native size."""
    batches: tuple[int, ...]
    repetitions: int
    warmup: int
    device: str
    backend: BackendName
    precision: ComputePrecision | None
    """None uses the bundle's precision."""
    threads: int | None
    allow_cpu_fallback: bool
    first_image: bool
    profile: Path | None


class Bench:
    """A benchmark, checked against the bundle's manifest before any engine is opened.

    Raises:
        BundleError: the bundle does not exist or is damaged.
        RequestError: the bundle does not support the settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._device = Device(settings.device)
        self._manifest = read_manifest(locate(settings.bundle))
        self._sizes = settings.sizes or (self._manifest.native_sizes[0],)
        self._workload = Workload(self._manifest, settings.prompt, settings.seed, settings.request)
        for size in self._sizes:
            self._request = self._workload.check(size)

    def measure(self, tell: Tell) -> dict[str, Any]:
        """Run all measurements and return the result as a JSON object. Writes the profile if one is requested.

        Raises:
            EngineError: the device failed, an image is not finite, or a file cannot be written.
            MissingDependencyError: no backend for the device is installed.
            RequestError: the backend does not support the device, or its engines do not support a batch size.
        """
        settings = self._settings
        facts = machine.facts()
        # Run this first: this process's peak memory would hide that of its children.
        first = self._first_image(tell) if settings.first_image else None
        start = time.perf_counter()
        tell("opening the bundle", None)
        with self._open(TimedPipeline) as pipeline:
            opening = {"seconds": digits(time.perf_counter() - start), "peak_rss_bytes": peak_rss_bytes()}
            self._check_batches(pipeline)
            cases = [
                measure_case(
                    pipeline,
                    self._workload,
                    Case(size, batch),
                    self._device,
                    repetitions=settings.repetitions,
                    warmup=settings.warmup,
                    tell=tell,
                )
                for size in self._sizes
                for batch in settings.batches
            ]
            peaks = [
                opening["peak_rss_bytes"],
                peak_rss_bytes(),
                *(case["peak_rss_bytes"] or 0 for case in cases),
            ]
            about = {
                "benchmark": NAME,
                "bundle": self._bundle(),
                "settings": self._recorded_settings(pipeline),
            }
        if settings.profile is not None:
            self._profile(settings.profile, about, tell)
        used = [case["device_bytes"] for case in cases if case["device_bytes"] is not None]
        gpu = machine.gpu_facts(self._device.index) if self._device.kind == "cuda" else None
        return {
            **about,
            "opening": opening,
            "first_image": first,
            "cases": cases,
            "peak_rss_bytes": max(peaks),
            "device_bytes": max(used, default=None),
            "machine": facts if gpu is None else facts | {"gpu": gpu},
            "load_average_after": machine.load_average(),
        }

    def _first_image(self, tell: Tell) -> dict[str, Any]:
        settings = self._settings
        options = [f"--device={settings.device}", f"--backend={settings.backend}"]
        optional = {"--precision": settings.precision, "--threads": settings.threads}
        options += [f"{name}={value}" for name, value in optional.items() if value is not None]
        if settings.allow_cpu_fallback:
            options.append("--allow-cpu-fallback")
        return first_images(
            str(locate(settings.bundle)),
            self._workload,
            self._sizes[0],
            options,
            settings.repetitions,
            lambda turn: tell(f"first image of a process, {turn + 1} of {settings.repetitions + 1}", None),
        )

    def _check_batches(self, pipeline: TimedPipeline) -> None:
        limit, largest = pipeline.largest_batch, max(self._settings.batches)
        if limit is not None and largest > limit:
            raise RequestError(
                f"--batch {largest} is too large: the bundle's engines support at most {limit} images at once"
            )

    def _profile(self, path: Path, about: dict[str, Any], tell: Tell) -> None:
        """Write a Chrome trace of one more image, after a warm-up. On a GPU, NVTX ranges are added if available.

        This uses a separate pipeline, opened after the measured one is closed, because recording operators is slow.
        """

        def record(calls: int | None = None) -> list[Span]:
            batch = make_images(
                pipeline, self._workload, self._sizes[0], 1, lambda progress: tell("profile", progress), calls
            )
            return batch.spans

        with self._open(ProfiledPipeline) as pipeline:
            warm = record(WARM_CALLS)
            ranges = nvtx_ranges() if self._device.kind == "cuda" else None
            pipeline.timeline.ranges = ranges
            try:
                spans = record()
            finally:
                pipeline.timeline.ranges = None
            profiles = pipeline.operators(warm, spans)
        trace = chrome_trace(spans, {**about, "nvtx": ranges is not None}, profiles)
        write_whole(path, json.dumps(trace) + "\n")

    def _open(self, kind: type[PipelineType]) -> PipelineType:
        settings = self._settings
        return kind.open(
            settings.bundle,
            device=settings.device,
            backend=settings.backend,
            precision=settings.precision,
            threads=settings.threads,
            allow_cpu_fallback=settings.allow_cpu_fallback,
            max_batch=max(settings.batches),
        )

    def _bundle(self) -> dict[str, Any]:
        manifest: Manifest = self._manifest
        return {
            "name": manifest.name,
            "identity": manifest.identity,
            "kind": manifest.variant,
            "precision": manifest.precision,
            "task": self._workload.task.name,
        }

    def _recorded_settings(self, pipeline: TimedPipeline) -> dict[str, Any]:
        settings, request = self._settings, self._request
        return {
            "device": settings.device,
            "backend": pipeline.backend,
            "precision": pipeline.precision,
            "threads": settings.threads,
            "allow_cpu_fallback": settings.allow_cpu_fallback,
            "steps": sampling_of(request, None).step_count,
            "guidance_scale": request.guidance_scale,
            "sampler": sampler_of(request, self._manifest).name,
            "strength": request.strength,
            "noise_level": request.noise_level,
            "prompt": settings.prompt,
            "seed": settings.seed,
            "repetitions": settings.repetitions,
            "warmup": settings.warmup,
        }
