"""Measure how time and memory grow with batch, size, steps and concurrent requests.

    python -m benchmarks.scaling [--bundle BUNDLE] [--sizes 64 128 192 256] [--batches 1 2 4 8] [--output]

Times of all points are taken in turns in one process; memory is measured in a separate process per point. Each curve
is fitted by a power law and compared with the growth of the operations, counted from the ONNX graphs. With --output,
a plot is saved beside the result.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cost_model.counts import Counts, count_part
from benchmarks.cost_model.rates import last_cache_bytes
from benchmarks.cost_model.reference_counts import references_of
from benchmarks.gpu.part_inputs import dims_of
from benchmarks.recording import machine, process, report
from benchmarks.recording.bundle import add_bundle, bundle_or_demo
from benchmarks.scaling.plot import save_plot
from benchmarks.scaling.point import Point, Timing, time_point
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle, open_bundle
from sd2rt.runtime import Pipeline

WORSE = 1.1
"""Growth is worse than linear if the exponent's median is above this and no round's is below 1."""
_MIX = (4, 8, 12, 6)
"""Steps of concurrent requests, in rotation, in sixths of --call-steps."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    add_bundle(parser)
    parser.add_argument("--what", help="suffix of the result's name; default: demo, full or small")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 192, 256], help="in pixels")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument(
        "--size", type=int, help="size of the other curves; default: the bundle's native size"
    )
    parser.add_argument("--call-steps", type=int, default=6, help="steps per image of the other curves")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--memory-repetitions", type=int, default=2, help="0 skips the memory measurement")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    report.add_output(parser)
    options = parser.parse_args()
    if options.call_steps < 2 or min(options.steps) < 2:
        parser.error("--steps and --call-steps must be at least 2: the first call of an image is not counted")
    facts = machine.facts()
    with bundle_or_demo(options.bundle) as path:
        result = _measure(open_bundle(path), options) | {"machine": facts}
    result["load_average_after"] = machine.load_average()
    if options.output is not None:
        picture = report.path_of(result, options.output).with_suffix(".png")
        picture.parent.mkdir(parents=True, exist_ok=True)
        save_plot(result, picture)
        result["plot"] = picture.name
    report.finish(result, COLUMNS, rows(result), options.output)


@dataclass(frozen=True, slots=True)
class Curve:
    """Points along which one quantity grows."""

    name: str
    grows: str
    """Label of the x axis."""
    points: tuple[Point, ...]

    def x(self, point: Point, timing: Timing) -> float:
        """Position of a point on the x axis."""
        by = {"batch": len(point.steps), "pixels": point.side**2}
        # For steps and requests, network evaluations: some samplers make several per step.
        return float(by.get(self.grows, timing.calls))

    def seconds(self, timing: Timing) -> float:
        return timing.call if self.grows in ("batch", "pixels") else timing.whole


def _curves(options: argparse.Namespace, side: int) -> list[Curve]:
    call_steps = options.call_steps
    mixed = [max(2, round(call_steps * share / 6)) for share in _MIX]

    def curve(name: str, grows: str, points: Iterable[Point]) -> Curve:
        return Curve(name, grows, tuple(points))

    return [
        curve("batch", "batch", (Point(side, n, (call_steps,) * n) for n in options.batches)),
        curve("size", "pixels", (Point(s, 1, (call_steps,), decode=True) for s in options.sizes)),
        curve("steps", "steps", (Point(side, 1, (n,)) for n in options.steps)),
        curve(
            "requests",
            "steps of all requests",
            (Point(side, 4, tuple(mixed[i % 4] for i in range(n))) for n in options.requests),
        ),
    ]


def _measure(bundle: Bundle, options: argparse.Namespace) -> dict[str, Any]:
    side = options.size or bundle.manifest.native_sizes[0][0]
    full = any(True for _ in references_of(bundle))
    suffix = options.what or ("demo" if options.bundle is None else "full" if full else "small")
    curves = _curves(options, side)
    points = {point: None for curve in curves for point in curve.points}
    timings: dict[Point, list[Timing]] = defaultdict(list)
    max_batch = max(point.batch for point in points)
    with (
        process.OthersClock() as other_load,
        Pipeline.open(bundle.path, threads=options.threads, max_batch=max_batch) as pipeline,
    ):
        for repetition in range(options.repetitions + 1):
            for point in points:
                timing = time_point(pipeline, point)
                if repetition:  # the first repetition warms the sessions and caches
                    timings[point].append(timing)
    memory = _memory(bundle.path, list(points), options)
    operations = _Operations(bundle)
    curve_records = [_curve(curve, timings, memory, operations) for curve in curves]
    curve_records.insert(2, _decoder(curves[1], timings, operations))
    return {
        "benchmark": f"scaling-{suffix}",
        "precision": bundle.manifest.precision,
        "size_px": [side, side],
        "threads": options.threads,
        "repetitions": options.repetitions,
        "opened_rss_bytes": memory.get(None, []) and report.summary(memory[None], 0),
        "curves": curve_records,
        "others_cpu_seconds": other_load.seconds,
    }


def _memory(
    bundle: Path, points: Sequence[Point], options: argparse.Namespace
) -> dict[Point | None, list[int]]:
    """Peak resident bytes of each point, each in a separate process; None is the opened bundle alone."""
    opened = Point(points[0].side, max(point.batch for point in points), ())
    peaks: dict[Point | None, list[int]] = defaultdict(list)
    for _ in range(options.memory_repetitions):
        for point in (None, *points):
            command = [sys.executable, "-m", "benchmarks.scaling.point", str(bundle)]
            command += [(point or opened).json(), str(options.threads)]
            peaks[point].append(int(process.measure(command).stdout))
    return peaks


class _Operations:
    """Operation counts of a bundle's parts at any size, cached."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.of = cache(self._of)

    def _of(self, part: PartName, side: int, batch: int) -> Counts:
        dims = dims_of(self._bundle.manifest, part, side, batch)
        return count_part(self._bundle.path, self._bundle.manifest.parts[part], dims)


def _curve(
    curve: Curve,
    timings: dict[Point, list[Timing]],
    memory: dict[Point | None, list[int]],
    operations: _Operations,
) -> dict[str, Any]:
    xs = [curve.x(point, timings[point][0]) for point in curve.points]
    seconds = [[curve.seconds(timing) for timing in timings[point]] for point in curve.points]
    counts = [
        operations.of("denoiser", point.side, len(point.steps) if curve.grows == "batch" else 1)
        for point in curve.points
    ]
    calls = [1 if curve.grows in ("batch", "pixels") else x for x in xs]
    record = _record(
        curve.name, curve.grows, xs, seconds, [c.flops * n for c, n in zip(counts, calls, strict=True)]
    )
    if memory:
        opened = float(np.median(memory[None]))
        peaks = [memory[point] for point in curve.points]
        # Memory above the opened bundle, at least 1 MB: a small point may not raise the peak at all.
        above = [[max(peak - opened, 1e6) for peak in each] for each in peaks]
        record["peak_rss_bytes"] = [report.summary(each, 0) for each in peaks]
        record["memory_exponent"] = report.summary(exponents(xs, above), 3)
    record["note"] = note(record, counts)
    return record


def _decoder(size: Curve, timings: dict[Point, list[Timing]], operations: _Operations) -> dict[str, Any]:
    xs = [float(point.side**2) for point in size.points]
    seconds = [[timing.decode or 0.0 for timing in timings[point]] for point in size.points]
    counts = [operations.of("decoder", point.side, 1) for point in size.points]
    record = _record("size, decoder", "pixels", xs, seconds, [c.flops for c in counts])
    record["note"] = note(record, counts)
    return record


def _record(
    name: str, grows: str, xs: list[float], seconds: list[list[float]], flops: Sequence[float]
) -> dict[str, Any]:
    return {
        "name": name,
        "grows": grows,
        "x": xs,
        "seconds": [report.summary(each, 6) for each in seconds],
        "flops": [int(each) for each in flops],
        "time_exponent": report.summary(exponents(xs, seconds), 3),
        "flops_exponent": round(exponents(xs, [[each] for each in flops])[0], 3),
    }


def exponents(xs: Sequence[float], values: Sequence[Sequence[float]]) -> list[float]:
    """Fit a power law to each round: the least-squares slope of log value over log x.

    Args:
        values: values by point, then by round.
    """
    rounds = np.log(np.array(values, np.float64)).T  # [rounds, points]
    return [float(np.polyfit(np.log(xs), values_of_round, 1)[0]) for values_of_round in rounds]


def attention_share(counts: Counts) -> float:
    """Share of attention in the operations of a call."""
    return (counts.self_attention + counts.cross_attention) / counts.flops


def _worse(exponent: dict[str, float]) -> bool:
    return exponent["median"] > WORSE and exponent["min"] > 1


def note(curve: dict[str, Any], counts: Sequence[Counts]) -> str:
    """Explain a curve that grows faster than linearly; empty for one that does not.

    Args:
        counts: operations and bytes of a call, at each point.
    """
    notes = []
    first, last = counts[0], counts[-1]
    exponent, flops = curve["time_exponent"]["median"], curve["flops_exponent"]
    if _worse(curve["time_exponent"]):
        shares = f"attention's share goes from {attention_share(first):.0%} to {attention_share(last):.0%}"
        text = f"the operations grow by {flops:.2f}; {shares}"
        if exponent > flops + WORSE - 1:
            rates = [f / s["median"] / 1e9 for f, s in zip(curve["flops"], curve["seconds"], strict=True)]
            text += (
                f"; time grows faster than the operations: from {rates[0]:.0f} to {rates[-1]:.0f} GFLOP/s, while the "
                f"bytes moved by products go from {first.bytes / 1e6:.0f} to {last.bytes / 1e6:.0f} MB (last cache: "
                f"{last_cache_bytes() / 1e6:.0f} MB)"
            )
        notes.append(text)
    memory = curve.get("memory_exponent")
    if memory is not None and _worse(memory):
        notes.append(
            f"memory: the largest attention's scores go from {first.score_bytes / 1e6:.0f} to "
            f"{last.score_bytes / 1e6:.0f} MB"
        )
    return "; ".join(notes)


COLUMNS = (
    "grows",
    "from",
    "to",
    "s",
    "to s",
    "time ~ x^",
    "spread",
    "FLOPs ~ x^",
    "memory ~ x^",
    "peak MB",
    "worse than linear",
)


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Table rows of a result."""
    table_rows = []
    for curve in result["curves"]:
        time_, memory = curve["time_exponent"], curve.get("memory_exponent")
        table_rows.append(
            (
                curve["name"],
                *(f"{curve['x'][end]:g}" for end in (0, -1)),
                *(f"{curve['seconds'][end]['median']:.3f}" for end in (0, -1)),
                f"{time_['median']:.2f}",
                f"{time_['min']:.2f} to {time_['max']:.2f}",
                f"{curve['flops_exponent']:.2f}",
                "" if memory is None else f"{memory['median']:.2f}",
                "" if memory is None else f"{curve['peak_rss_bytes'][-1]['median'] / 1e6:.0f}",
                curve["note"] or "no",
            )
        )
    return table_rows


if __name__ == "__main__":
    main()
