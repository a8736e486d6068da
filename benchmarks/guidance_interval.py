"""Measure what a guidance interval saves in denoiser rows and step time, compared with full guidance.

    python -m benchmarks.guidance_interval [--bundle BUNDLE] [--size N] [--interval LOW:HIGH ...]

Full guidance and the intervals alternate in one process, so that other load on the machine affects them equally.
A call outside the interval evaluates one row instead of two.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks.recording import machine, report
from benchmarks.recording.bundle import add_bundle, bundle_or_demo
from benchmarks.recording.process import OthersClock
from sd2rt.runtime import Pipeline, Request

INTERVALS = ("0.3:5.5", "1:5.5", "100:200")
"""Two intervals that skip the noisiest and cleanest calls, and one that skips all: the largest possible saving."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guidance_interval", description=__doc__.splitlines()[0]
    )
    add_bundle(parser)
    parser.add_argument(
        "--size", type=int, help="side of the images in pixels; default: the bundle's native size"
    )
    parser.add_argument("--interval", nargs="+", default=INTERVALS, metavar="LOW:HIGH")
    parser.add_argument("--sampler", default="dpmpp-2m")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, help="engine threads; default: one per core")
    report.add_output(parser)
    options = parser.parse_args()
    facts = machine.facts()
    with (
        bundle_or_demo(options.bundle) as bundle,
        Pipeline.open(bundle, threads=options.threads) as pipeline,
        OthersClock() as other_load,
    ):
        cases = _measure(pipeline, options)
    result = {
        "benchmark": "guidance-interval",
        "bundle": "demo" if options.bundle is None else Path(options.bundle).name,
        "sampler": options.sampler,
        "steps": options.steps,
        "threads": options.threads,
        "cases": cases,
        "others_cpu_seconds": other_load.seconds,
        "machine": facts,
        "load_average_after": machine.load_average(),
    }
    rows = [
        (
            case["interval"] or "full guidance",
            f"{case['guided']} of {case['calls']}",
            case["rows"],
            f"{case['rows_ratio']:.3f}",
            f"{case['seconds']['median']:.3f}",
            *(f"{case['time_ratio'][key]:.3f}" for key in ("median", "min", "max")),
        )
        for case in cases
    ]
    header = ("interval", "guided calls", "rows", "ratio", "s/image", "ratio", "min", "max")
    report.finish(result, header, rows, options.output)


def _measure(pipeline: Pipeline, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows and times of full guidance and of each interval; ratios are to full guidance in the same turn."""
    sides = {} if options.size is None else {"width": options.size, "height": options.size}
    texts = [None, *options.interval]
    seconds: list[list[float]] = [[] for _ in texts]
    calls_of: list[Any] = [()] * len(texts)
    for turn in range(options.repetitions + 1):
        for index, text in enumerate(texts):
            request = Request.model_validate(
                {
                    "prompt": "a lighthouse on a cliff at dusk",
                    "seed": 1,
                    "sampler": options.sampler,
                    "num_inference_steps": options.steps,
                    "guidance_interval": None if text is None else tuple(map(float, text.split(":"))),
                    "output_type": "latent",
                    **sides,
                }
            )
            with pipeline.stream_requests([request]) as run:
                calls_of[index] = run.jobs[0][0].trajectories[0].texts
                start = time.perf_counter()
                for _ in run:
                    pass
                elapsed = time.perf_counter() - start
            if turn:  # the first turn warms the sessions and caches
                seconds[index].append(elapsed)
    rows = [sum(call.rows for call in calls) for calls in calls_of]
    return [
        {
            "interval": text,
            "calls": len(calls_of[index]),
            "guided": sum(call.rows > 1 for call in calls_of[index]),
            "rows": rows[index],
            "rows_ratio": round(rows[index] / rows[0], 4),
            "seconds": report.summary(seconds[index]),
            "time_ratio": report.summary(
                interval / full for interval, full in zip(seconds[index], seconds[0], strict=True)
            ),
        }
        for index, text in enumerate(texts)
    ]


if __name__ == "__main__":
    main()
