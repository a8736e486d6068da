"""Compare one engine for several sizes with an engine for each, compiled without a GPU: bytes, layers, seconds.

    python -m benchmarks.shared_engines [--variants 2.0-base] [--size 512 768] [--sm 89] [--output]
    python -m benchmarks.shared_engines --small     tiny networks, in minutes

Random weights cost the same bytes as trained ones. Layers are compared by their kind and the ONNX nodes that they
implement: those of the shared engine against those of the others together.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.engine_builds import build_facts, report_of
from benchmarks.recording import machine, process, report
from benchmarks.recording.process import sd2rt
from benchmarks.recording.published import add_published, published, write_command
from benchmarks.recording.work_folder import add_workdir, work_folder

FULL_BYTES = 16_000_000_000
PARTS = ("denoiser", "decoder")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shared_engines", description=__doc__.splitlines()[0]
    )
    add_published(parser)
    parser.add_argument("--size", nargs="+", default=["512", "768"])
    parser.add_argument("--sm", default="89", help="the compute capability to compile for")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    add_workdir(parser)
    report.add_output(parser)
    options = parser.parse_args()
    facts, cases = machine.facts(), []
    with work_folder("shared-engines", options.workdir, 0 if options.small else FULL_BYTES) as folder:
        env = process.environment(folder)
        for row in published(options):
            checkpoint, bundle = folder / "checkpoint", folder / "bundle"
            print(f"{row.name}: building the bundle ...", file=sys.stderr, flush=True)
            process.measure(write_command(row, checkpoint, small=options.small), env)
            build = ("build", checkpoint, "-o", bundle, "--variant", row.name, "--precision", "fp16")
            process.measure(sd2rt(*build), env)
            shutil.rmtree(checkpoint)
            for part in options.part:
                print(f"{row.name}: building the engines of {part} ...", file=sys.stderr, flush=True)
                cases.append({"variant": row.name, "part": part} | compared(bundle, part, options, env))
            shutil.rmtree(bundle)
    result = {
        "benchmark": "shared-engines-small" if options.small else "shared-engines",
        "sm": options.sm,
        "sizes": options.size,
        "cases": cases,
        "machine": facts,
        "load_average_after": machine.load_average(),
    }
    rows = [
        (
            case["variant"],
            case["part"],
            ", ".join(f"{each['bytes'] / 1e6:.1f}" for each in case["alone"]),
            f"{case['shared']['bytes'] / 1e6:.1f}",
            f"{case['ratio']:.3f}",
            f"{case['shared']['layers']} of {sum(each['layers'] for each in case['alone'])}",
            case["layers_that_differ"],
        )
        for case in cases
    ]
    header = ("", "part", "alone, MB", "shared, MB", "/ largest", "layers", "that differ")
    report.finish(result, header, rows, options.output)


def compared(bundle: Path, part: str, options: argparse.Namespace, env: dict[str, str]) -> dict[str, Any]:
    """Build both forms of a part's engines, and compare them."""
    words = ["build", bundle, "--engines-only", "--json", "--backend", "tensorrt-rtx", "--sm", options.sm]
    words += ["--batch", "1", "--part", part, *(word for size in options.size for word in ("--size", size))]
    if options.small:
        # Heads of the tiny networks are too narrow for attention kernels.
        words.append("--allow-decomposed")
    process.measure(sd2rt(*words), env)
    process.measure(sd2rt(*words, "--shared"), env)
    entries = json.loads((bundle / "bundle.json").read_text())["engines"]
    built = [(entry, report_of(bundle, entry)) for entry in entries if entry["part"] == part]
    shared, *alone = sorted(built, key=lambda each: -len(each[0]["profiles"]))
    ours, theirs = layers_of([shared[1]]), layers_of([told for _, told in alone])
    largest = max(entry["file"]["size"] for entry, _ in alone)
    return {
        "alone": [build_facts(*each) for each in alone],
        "shared": build_facts(*shared),
        "ratio": round(shared[0]["file"]["size"] / largest, 4),
        "layers_that_differ": (ours - theirs).total() + (theirs - ours).total(),
    }


def layers_of(reports: list[dict[str, Any]]) -> Counter[tuple[str, ...]]:
    """Count layers by their kind and ONNX nodes."""
    return Counter((layer["kind"], *layer["onnx"]) for each in reports for layer in each["layers"])


if __name__ == "__main__":
    main()
