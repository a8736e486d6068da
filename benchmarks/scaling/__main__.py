"""How time and memory grow with the batch, the size, the steps, and the requests that share the step loop.

    python -m benchmarks.scaling [--bundle BUNDLE] [--sizes 64 128 192 256] [--batches 1 2 4 8] [--output]

All points take turns in one process; the memory of each is that of a process of its own. Each curve is fitted by a
power of what grows; beside it stands the power by which the operations grow, counted from the ONNX graphs. With
--output, a picture of the curves is saved beside the result.
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
from benchmarks.scaling.point import Point, Taken, take
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle, open_bundle
from sd2rt.runtime import Pipeline

WORSE = 1.1
"""An exponent above this is worse than linear, where no round's is below 1; else it is noise."""
_MIX = (4, 8, 12, 6)
"""Steps of requests that share the loop, in turns, as a share of --call-steps of 6."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    add_bundle(parser)
    parser.add_argument("--what", help="ends the result's name; demo, full or small if left out")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 192, 256], help="in pixels")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--size", type=int, help="where it does not grow; the bundle's own if left out")
    parser.add_argument("--call-steps", type=int, default=6, help="of an image where they do not grow")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--memory-repetitions", type=int, default=2, help="0 leaves the memory out")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    report.add_output(parser)
    options = parser.parse_args()
    if options.call_steps < 2 or min(options.steps) < 2:
        parser.error("the first call of an image is not counted: give at least 2 steps")
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
    """Points along which one thing grows."""

    name: str
    grows: str
    """What is on the x axis."""
    points: tuple[Point, ...]

    def x(self, point: Point, taken: Taken) -> float:
        """How much of it a point has."""
        by = {"batch": len(point.steps), "pixels": point.side**2}
        # Of steps and requests: the network's evaluations, which samplers make more of than they have steps.
        return float(by.get(self.grows, taken.calls))

    def seconds(self, taken: Taken) -> float:
        return taken.call if self.grows in ("batch", "pixels") else taken.whole


def _curves(options: argparse.Namespace, side: int) -> list[Curve]:
    few = options.call_steps
    mixed = [max(2, round(few * share / 6)) for share in _MIX]

    def of(name: str, grows: str, points: Iterable[Point]) -> Curve:
        return Curve(name, grows, tuple(points))

    return [
        of("batch", "batch", (Point(side, n, (few,) * n) for n in options.batches)),
        of("size", "pixels", (Point(s, 1, (few,), decode=True) for s in options.sizes)),
        of("steps", "steps", (Point(side, 1, (n,)) for n in options.steps)),
        of(
            "requests",
            "steps of all requests",
            (Point(side, 4, tuple(mixed[i % 4] for i in range(n))) for n in options.requests),
        ),
    ]


def _measure(bundle: Bundle, options: argparse.Namespace) -> dict[str, Any]:
    side = options.size or bundle.manifest.native_sizes[0][0]
    full = any(True for _ in references_of(bundle))
    what = options.what or ("demo" if options.bundle is None else "full" if full else "small")
    curves = _curves(options, side)
    points = {point: None for curve in curves for point in curve.points}
    taken: dict[Point, list[Taken]] = defaultdict(list)
    most = max(point.batch for point in points)
    with (
        process.OthersClock() as others,
        Pipeline.open(bundle.path, threads=options.threads, max_batch=most) as pipeline,
    ):
        for repetition in range(options.repetitions + 1):
            for point in points:
                found = take(pipeline, point)
                if repetition:  # the first makes the sessions and the caches warm
                    taken[point].append(found)
    memory = _memory(bundle.path, list(points), options)
    operations = _Operations(bundle)
    described = [_curve(curve, taken, memory, operations) for curve in curves]
    described.insert(2, _decoder(curves[1], taken, operations))
    return {
        "benchmark": f"scaling-{what}",
        "precision": bundle.manifest.precision,
        "size_px": [side, side],
        "threads": options.threads,
        "repetitions": options.repetitions,
        "opened_rss_bytes": memory.get(None, []) and report.summary(memory[None], 0),
        "curves": described,
        "others_cpu_seconds": others.seconds,
    }


def _memory(
    bundle: Path, points: Sequence[Point], options: argparse.Namespace
) -> dict[Point | None, list[int]]:
    """Peak resident bytes of each point in processes of their own, in turns; None is the bundle, opened."""
    opened = Point(points[0].side, max(point.batch for point in points), ())
    found: dict[Point | None, list[int]] = defaultdict(list)
    for _ in range(options.memory_repetitions):
        for point in (None, *points):
            command = [sys.executable, "-m", "benchmarks.scaling.point", str(bundle)]
            command += [(point or opened).json(), str(options.threads)]
            found[point].append(int(process.measure(command).stdout))
    return found


class _Operations:
    """Operations of a bundle's parts at any size, each counted once."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.of = cache(self._of)

    def _of(self, part: PartName, side: int, batch: int) -> Counts:
        dims = dims_of(self._bundle.manifest, part, side, batch)
        return count_part(self._bundle.path, self._bundle.manifest.parts[part], dims)


def _curve(
    curve: Curve,
    taken: dict[Point, list[Taken]],
    memory: dict[Point | None, list[int]],
    operations: _Operations,
) -> dict[str, Any]:
    xs = [curve.x(point, taken[point][0]) for point in curve.points]
    seconds = [[curve.seconds(one) for one in taken[point]] for point in curve.points]
    counts = [
        operations.of("denoiser", point.side, len(point.steps) if curve.grows == "batch" else 1)
        for point in curve.points
    ]
    calls = [1 if curve.grows in ("batch", "pixels") else x for x in xs]
    found = _described(
        curve.name, curve.grows, xs, seconds, [c.flops * n for c, n in zip(counts, calls, strict=True)]
    )
    if memory:
        opened = float(np.median(memory[None]))
        peaks = [memory[point] for point in curve.points]
        # Of what is taken on top of the opened bundle; a point may take nothing that can be seen.
        above = [[max(peak - opened, 1e6) for peak in each] for each in peaks]
        found["peak_rss_bytes"] = [report.summary(each, 0) for each in peaks]
        found["memory_exponent"] = report.summary(exponents(xs, above), 3)
    found["note"] = note(found, counts)
    return found


def _decoder(size: Curve, taken: dict[Point, list[Taken]], operations: _Operations) -> dict[str, Any]:
    xs = [float(point.side**2) for point in size.points]
    seconds = [[one.decode or 0.0 for one in taken[point]] for point in size.points]
    counts = [operations.of("decoder", point.side, 1) for point in size.points]
    found = _described("size, decoder", "pixels", xs, seconds, [c.flops for c in counts])
    found["note"] = note(found, counts)
    return found


def _described(
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
    """The power of x that each round's values grow by: the slope of log value over log x, by least squares.

    Args:
        values: by point, then by round.
    """
    rounds = np.log(np.array(values, np.float64)).T  # [rounds, points]
    return [float(np.polyfit(np.log(xs), one, 1)[0]) for one in rounds]


def attention_share(counts: Counts) -> float:
    """Attention's share of a call's operations."""
    return (counts.self_attention + counts.cross_attention) / counts.flops


def _worse(exponent: dict[str, float]) -> bool:
    return exponent["median"] > WORSE and exponent["min"] > 1


def note(curve: dict[str, Any], counts: Sequence[Counts]) -> str:
    """What explains a curve that grows faster than linearly; empty where none does.

    Args:
        counts: of a call, at each point.
    """
    said = []
    first, last = counts[0], counts[-1]
    exponent, flops = curve["time_exponent"]["median"], curve["flops_exponent"]
    if _worse(curve["time_exponent"]):
        shares = (
            f"attention's share of them goes from {attention_share(first):.0%} to {attention_share(last):.0%}"
        )
        text = f"the operations grow by {flops:.2f}; {shares}"
        if exponent > flops + WORSE - 1:
            rates = [f / s["median"] / 1e9 for f, s in zip(curve["flops"], curve["seconds"], strict=True)]
            text += (
                f"; time grows faster than they do: from {rates[0]:.0f} to {rates[-1]:.0f} GFLOP/s, while what "
                f"products move goes from {first.bytes / 1e6:.0f} to {last.bytes / 1e6:.0f} MB (last cache: "
                f"{last_cache_bytes() / 1e6:.0f} MB)"
            )
        said.append(text)
    memory = curve.get("memory_exponent")
    if memory is not None and _worse(memory):
        said.append(
            f"memory: the largest attention's scores go from {first.score_bytes / 1e6:.0f} to "
            f"{last.score_bytes / 1e6:.0f} MB"
        )
    return "; ".join(said)


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
    """The table of a result."""
    found = []
    for curve in result["curves"]:
        time_, memory = curve["time_exponent"], curve.get("memory_exponent")
        found.append(
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
    return found


if __name__ == "__main__":
    main()
