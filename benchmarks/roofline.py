"""Each part of a bundle beside what the machine can do: its operations, its bytes, its time, and what bounds it.

    python -m benchmarks.roofline [--bundle BUNDLE] [--size N] [--batch N] [--threads N] [--output]

Operations and bytes are counted from the ONNX graphs; those of a full-size bundle must agree with an independent
count, or this ends with an error. The rates of a matrix product and of a copy are measured in turns with the parts.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict
from typing import Any

from benchmarks.cost_model.counts import CountError, Counts, count_part
from benchmarks.cost_model.rates import Rates
from benchmarks.cost_model.reference_counts import check_bundle
from benchmarks.cost_model.shapes import ShapeError
from benchmarks.gpu.part_inputs import dims_of, part_inputs
from benchmarks.recording import machine, report
from benchmarks.recording.bundle import add_bundle, bundle_or_demo
from benchmarks.recording.process import OthersClock
from sd2rt.engines.backends import open_backend
from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.reader import Bundle, open_bundle
from sd2rt.engines.errors import Sd2rtError
from sd2rt.engines.interface import NO_CARRY, Backend, Device
from sd2rt.runtime.denoising.batch import CARRY

PARTS: tuple[PartName, ...] = ("text_encoder", "denoiser", "decoder", "encoder", "depth_estimator")
_BURST_SECONDS = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.roofline", description=__doc__.splitlines()[0]
    )
    add_bundle(parser)
    parser.add_argument("--what", help="ends the result's name; demo, full or small if left out")
    parser.add_argument("--size", type=int, help="side of the images in pixels; the bundle's own if left out")
    parser.add_argument("--batch", type=int, default=1, help="guided images of a denoiser call")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repetitions", type=int, default=5)
    report.add_output(parser)
    options = parser.parse_args()
    facts = machine.facts()
    with bundle_or_demo(options.bundle) as path:
        try:
            result = _measure(open_bundle(path), options)
        except (CountError, ShapeError, Sd2rtError) as error:
            sys.exit(f"benchmarks.roofline: {error}")
    result |= {"machine": facts, "load_average_after": machine.load_average()}
    report.finish(result, COLUMNS, rows(result), options.output)


def _measure(bundle: Bundle, options: argparse.Namespace) -> dict[str, Any]:
    agreement = check_bundle(bundle)
    what = options.what or ("demo" if options.bundle is None else "full" if agreement else "small")
    side = options.size or bundle.manifest.native_sizes[0][0]
    rates = Rates(options.threads)
    seen: list[dict[str, float]] = []
    with OthersClock() as others:
        backend = open_backend(bundle, Device(options.device), needed=PARTS[:3], threads=options.threads)
        try:
            parts = {
                part: _part(bundle, backend, rates, part, side, options, seen)
                for part in options.parts
                if part in bundle.manifest.parts
            }
        finally:
            backend.close()
    return {
        "benchmark": f"roofline-{what}",
        "precision": bundle.manifest.precision,
        "backend": backend.name,
        "size_px": [side, side],
        "batch": options.batch,
        "threads": options.threads,
        "rates": {name: report.summary((one[name] for one in seen), 0) for name in seen[0]},
        "rates_measured": rates.facts(),
        "parts": parts,
        "agreement": agreement,
        "others_cpu_seconds": others.seconds,
    }


def _part(
    bundle: Bundle,
    backend: Backend,
    rates: Rates,
    part: PartName,
    side: int,
    options: argparse.Namespace,
    seen: list[dict[str, float]],
) -> dict[str, Any]:
    """A part's counts, and its time in turns with the rates; it is loaded for as long as this takes."""
    dims = dims_of(bundle.manifest, part, side, options.batch if part == "denoiser" else 1)
    counts = count_part(bundle.path, bundle.manifest.parts[part], dims)
    seconds, turns = [], []
    with backend.open(part) as engine:
        session = engine.session(dims, CARRY if part == "denoiser" else NO_CARRY)
        for name, array in part_inputs(bundle.manifest, part, dims, still=True).items():
            session.buffers[name].write(array)
        for _ in range(options.repetitions):
            turns.append(rates.measure())
            # What follows the copy finds the caches empty, and the first launch of all makes its memory.
            session.launch()
            seconds.append(_launches(session.launch))
    seen += turns
    return {"dims": dims, **roofline(counts, seconds, turns)}


def _launches(launch: Any) -> float:
    """Seconds of a launch, over as many as fit into a fifth of a second, at least one."""
    start, number = time.perf_counter(), 0
    while True:
        launch()
        number += 1
        taken = time.perf_counter() - start
        if taken >= _BURST_SECONDS:
            return taken / number


def roofline(counts: Counts, seconds: list[float], turns: list[dict[str, float]]) -> dict[str, Any]:
    """A part's place under the roof: its shares of the rates of the same turns, and which of the two it is nearer to.

    The roof is the time that its operations take at the rate of an fp32 product, or its bytes at that of a copy,
    whichever is longer (Williams, Waterman, Patterson 2009, doi:10.1145/1498765.1498785).

    Args:
        seconds: of a call, in each turn.
        turns: the rates, in each turn.
    """
    shares: dict[str, Any] = {}
    for name in turns[0]:
        work = counts.bytes if name == "copy" else counts.flops
        pairs = zip(seconds, turns, strict=True)
        shares[name] = report.summary(work / taken / turn[name] for taken, turn in pairs)
    compute, memory = shares["gemm_fp32"]["median"], shares["copy"]["median"]
    return {
        **asdict(counts),
        "flops": counts.flops,
        "bytes": counts.bytes,
        "seconds": report.summary(seconds, 6),
        "share": shares,
        "bound": "compute" if compute >= memory else "memory",
        "roofline_share": max(compute, memory),
    }


_RATES = {"gemm_fp32": "GFLOP/s", "gemm_bf16": "GFLOP/s", "copy": "GB/s"}
COLUMNS = ("", "GFLOP", "MB", "FLOP/byte", "ms", "of GEMM fp32", "of GEMM bf16", "of copy", "bound by")


def rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table of a result: its parts, then the rates that they are shares of."""
    found = []
    for name, part in result["parts"].items():
        share = part["share"]
        shares = [f"{share[key]['median']:.0%}" if key in share else "" for key in _RATES]
        found.append(
            (
                name,
                f"{part['flops'] / 1e9:.2f}",
                f"{part['bytes'] / 1e6:.1f}",
                f"{part['flops'] / part['bytes']:.0f}",
                f"{part['seconds']['median'] * 1e3:.2f}",
                *shares,
                part["bound"],
            )
        )
    rates = [
        "" if key not in result["rates"] else f"{result['rates'][key]['median'] / 1e9:.0f} {unit}"
        for key, unit in _RATES.items()
    ]
    return [*found, ("the machine", "", "", "", "", *rates, "")]


if __name__ == "__main__":
    main()
