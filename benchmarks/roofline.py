"""Compare each part of a bundle with the machine's roofline: operations, bytes, time, and the bound.

    python -m benchmarks.roofline [--bundle BUNDLE] [--size N] [--batch N] [--threads N] [--output]

Operations and bytes are counted from the ONNX graphs. For a full-size bundle the counts must agree with an
independent count, or the run ends with an error. The rates of a matrix product and a copy are measured in turns with
the parts.
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
    parser.add_argument("--what", help="suffix of the result's name; default: demo, full or small")
    parser.add_argument(
        "--size", type=int, help="side of the images in pixels; default: the bundle's native size"
    )
    parser.add_argument("--batch", type=int, default=1, help="guided images per denoiser call")
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
    suffix = options.what or ("demo" if options.bundle is None else "full" if agreement else "small")
    side = options.size or bundle.manifest.native_sizes[0][0]
    rates = Rates(options.threads)
    all_rates: list[dict[str, float]] = []
    with OthersClock() as other_load:
        backend = open_backend(bundle, Device(options.device), needed=PARTS[:3], threads=options.threads)
        try:
            parts = {
                part: _part(bundle, backend, rates, part, side, options, all_rates)
                for part in options.parts
                if part in bundle.manifest.parts
            }
        finally:
            backend.close()
    return {
        "benchmark": f"roofline-{suffix}",
        "precision": bundle.manifest.precision,
        "backend": backend.name,
        "size_px": [side, side],
        "batch": options.batch,
        "threads": options.threads,
        "rates": {name: report.summary((rate[name] for rate in all_rates), 0) for name in all_rates[0]},
        "rates_measured": rates.facts(),
        "parts": parts,
        "agreement": agreement,
        "others_cpu_seconds": other_load.seconds,
    }


def _part(
    bundle: Bundle,
    backend: Backend,
    rates: Rates,
    part: PartName,
    side: int,
    options: argparse.Namespace,
    all_rates: list[dict[str, float]],
) -> dict[str, Any]:
    """Count a part and time it in turns with the machine's rates. The part is loaded only during this call."""
    dims = dims_of(bundle.manifest, part, side, options.batch if part == "denoiser" else 1)
    counts = count_part(bundle.path, bundle.manifest.parts[part], dims)
    seconds, turns = [], []
    with backend.open(part) as engine:
        session = engine.session(dims, CARRY if part == "denoiser" else NO_CARRY)
        for name, array in part_inputs(bundle.manifest, part, dims, still=True).items():
            session.buffers[name].write(array)
        for _ in range(options.repetitions):
            turns.append(rates.measure())
            # Untimed: the copy has emptied the caches, and the very first launch allocates memory.
            session.launch()
            seconds.append(_seconds_per_launch(session.launch))
    all_rates += turns
    return {"dims": dims, **roofline(counts, seconds, turns)}


def _seconds_per_launch(launch: Any) -> float:
    """Seconds per launch, averaged over as many as fit into a fifth of a second, at least one."""
    start, launches = time.perf_counter(), 0
    while True:
        launch()
        launches += 1
        elapsed = time.perf_counter() - start
        if elapsed >= _BURST_SECONDS:
            return elapsed / launches


def roofline(counts: Counts, seconds: list[float], turns: list[dict[str, float]]) -> dict[str, Any]:
    """Return a part's share of the machine's rates in the same turns, and whether compute or memory bounds it.

    The bound is the longer of two times: the operations at the rate of an fp32 matrix product, or the bytes at the
    rate of a copy (Williams, Waterman, Patterson 2009, doi:10.1145/1498765.1498785).

    Args:
        seconds: time per call, in each turn.
        turns: the machine's rates, in each turn.
    """
    shares: dict[str, Any] = {}
    for name in turns[0]:
        work = counts.bytes if name == "copy" else counts.flops
        pairs = zip(seconds, turns, strict=True)
        shares[name] = report.summary(work / elapsed / turn[name] for elapsed, turn in pairs)
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
    """Table rows of a result: its parts, then the machine's rates."""
    part_rows = []
    for name, part in result["parts"].items():
        share = part["share"]
        shares = [f"{share[key]['median']:.0%}" if key in share else "" for key in _RATES]
        part_rows.append(
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
    return [*part_rows, ("the machine", "", "", "", "", *rates, "")]


if __name__ == "__main__":
    main()
