"""Host cost of a denoiser step outside the engine: the loop's time less the time in `session.launch()`.

    python -m benchmarks.host_overhead [--bundle BUNDLE] [--size N] [--batches 1 2 4 8]

Measured in a real run, not on a stand-in engine, because the engine's effect on the CPU caches is part of the cost.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
from pathlib import Path
from typing import Any

from benchmarks.recording import machine, report
from benchmarks.recording.bundle import add_bundle, bundle_or_demo
from benchmarks.recording.process import OthersClock
from sd2rt.runtime import Pipeline
from sd2rt.runtime.bench.recording import StepTime, run_steps, step_times
from sd2rt.runtime.bench.timed_pipeline import TimedPipeline

MICROSECONDS_BOUND = 100.0
SAMPLERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("pndm", {"sampler": "pndm"}),
    # Draws fresh noise at every step.
    ("ddim, eta 1", {"sampler": "ddim", "eta": 1.0}),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host_overhead", description=__doc__.splitlines()[0]
    )
    add_bundle(parser)
    parser.add_argument(
        "--size", type=int, help="side of the images in pixels; default: the bundle's native size"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, help="engine threads; default: one per core")
    parser.add_argument("--profile", action="store_true", help="also profile by function")
    report.add_output(parser)
    options = parser.parse_args()
    facts = machine.facts()
    with (
        bundle_or_demo(options.bundle) as bundle,
        TimedPipeline.open(bundle, threads=options.threads, max_batch=max(options.batches)) as pipeline,
    ):
        with OthersClock() as other_load:
            cases = [
                _measure(pipeline, batch, sampler, settings, options)
                for sampler, settings in SAMPLERS
                for batch in options.batches
            ]
        if options.profile:
            _profile(pipeline, options)
    one = [case for case in cases if case["batch"] == 1]
    result = {
        "benchmark": "host-overhead",
        "bundle": "demo" if options.bundle is None else Path(options.bundle).name,
        "steps": options.steps,
        "threads": options.threads,
        "cases": cases,
        "others_cpu_seconds": other_load.seconds,
        "bounds": {
            case["sampler"]: {
                "bound_us": MICROSECONDS_BOUND,
                "holds": case["host_us"]["median"] <= MICROSECONDS_BOUND,
            }
            for case in one
        },
        "machine": facts,
        "load_average_after": machine.load_average(),
    }
    rows = [
        (
            case["sampler"],
            f"{case['width']}x{case['height']}",
            case["batch"],
            *(f"{case['host_us'][key]:.0f}" for key in ("median", "p10", "p90")),
            f"{case['first_us']['median']:.0f}",
            f"{case['launch_us']['median']:.0f}",
            f"<= {MICROSECONDS_BOUND:.0f}" if case["batch"] == 1 else "",
        )
        for case in cases
    ]
    header = (
        "sampler",
        "size",
        "batch",
        "host us/step",
        "p10",
        "p90",
        "first step",
        "engine us/step",
        "bound",
    )
    report.finish(result, header, rows, options.output)


def _measure(
    pipeline: TimedPipeline, batch: int, sampler: str, settings: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Measure one batch size and sampler; the first step of each repetition is reported separately."""
    width, height = (options.size, options.size) if options.size else pipeline.manifest.native_sizes[0]
    hosts, launches, firsts = [], [], []
    for repetition in range(options.repetitions + 1):
        steps = timed_steps(pipeline, batch, width, height, options.steps, settings)
        if repetition:  # the first repetition warms the session and caches
            firsts.append(steps[0].host / 1e3)
            hosts += [step.host / 1e3 for step in steps[1:]]
            launches += [step.launch / 1e3 for step in steps[1:]]
    hosts.sort()
    spread = {f"p{share}": round(hosts[len(hosts) * share // 100], 1) for share in (10, 90)}
    return {
        "sampler": sampler,
        "batch": batch,
        "width": width,
        "height": height,
        "host_us": report.summary(hosts, 1) | spread,
        "first_us": report.summary(firsts, 1),
        "launch_us": report.summary(launches, 1),
    }


def timed_steps(
    pipeline: TimedPipeline, batch: int, width: int, height: int, steps: int, settings: dict[str, Any]
) -> list[StepTime]:
    """Time each step of a stream that is consumed as a caller would."""
    prompts = [f"lighthouse number {index}" for index in range(batch)]
    run = pipeline.stream(
        prompts,
        num_inference_steps=steps,
        seed=1,
        width=width,
        height=height,
        output_type="latent",
        **settings,
    )
    with run:
        pipeline.timeline.take()
        run_steps(pipeline.timeline, run, lambda progress: None)
    return step_times(pipeline.timeline.take())


def _profile(pipeline: Pipeline, options: argparse.Namespace) -> None:
    width, height = (options.size, options.size) if options.size else pipeline.manifest.native_sizes[0]
    profile = cProfile.Profile()
    run = pipeline.stream(
        "a lighthouse", num_inference_steps=500, width=width, height=height, output_type="latent"
    )
    with run:
        next(iter(run))
        profile.enable()
        for _ in run:
            pass
        profile.disable()
    pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(15)


if __name__ == "__main__":
    main()
