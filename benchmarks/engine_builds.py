"""Compile full-size engines of every published checkpoint without a GPU: seconds, memory, fused attention.

    python -m benchmarks.engine_builds [--variants 2.0-depth x4-upscaler ...] [--size 512 768] [--sm 89] [--output]
    python -m benchmarks.engine_builds --small      tiny networks, in minutes

Random weights cost the same time and memory as trained ones. TensorRT for RTX compiles ahead of time for the compute
capability `--sm`. Each engine is compiled in a separate process, which reports its time and peak memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.recording import machine, process, report
from benchmarks.recording.process import sd2rt
from benchmarks.recording.published import add_published, published, write_command
from benchmarks.recording.work_folder import add_workdir, work_folder
from sd2rt.export.checkpoints.variants import PublishedCheckpoint

FULL_BYTES = 30_000_000_000
SECONDS_BOUND = 90.0
BYTES_BOUND = 8_000_000_000


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine_builds", description=__doc__.splitlines()[0]
    )
    add_published(parser)
    parser.add_argument("--size", nargs="+", default=["512", "768"])
    parser.add_argument("--sm", default="89", help="the compute capability to compile for")
    parser.add_argument("--batch", default="1", help="batches or ranges, as in sd2rt build")
    add_workdir(parser)
    report.add_output(parser)
    options = parser.parse_args()
    with work_folder("engine-builds", options.workdir, 0 if options.small else FULL_BYTES) as folder:
        result = _measure(published(options), options, folder)
    report.finish(result, _COLUMNS, _rows(result), options.output)


def _measure(
    variants: list[PublishedCheckpoint], options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    facts, env = machine.facts(), process.environment(folder)
    results: dict[str, Any] = {}
    for row in variants:
        checkpoint, bundle = folder / "checkpoint", folder / "bundle"
        print(f"{row.name}: building the bundle ...", file=sys.stderr, flush=True)
        process.measure(write_command(row, checkpoint, small=options.small), env)
        build = ("build", checkpoint, "-o", bundle, "--variant", row.name, "--precision", "fp16")
        process.measure(sd2rt(*build), env)
        shutil.rmtree(checkpoint)
        print(f"{row.name}: building the engines ...", file=sys.stderr, flush=True)
        arguments = ["--backend", "tensorrt-rtx", "--sm", options.sm, "--batch", options.batch]
        arguments += [word for size in options.size for word in ("--size", size)]
        seconds, error = 0.0, None
        try:
            seconds = process.measure(
                sd2rt("build", bundle, "--engines-only", "--json", *arguments), env
            ).seconds
        except process.CommandError as failure:
            # Engines built before the failure are in the bundle; go on with the other checkpoints.
            error = str(failure)
            print(f"{row.name}: {error}", file=sys.stderr, flush=True)
        engines = []
        for entry in json.loads((bundle / "bundle.json").read_text())["engines"]:
            described = ("part", "label", "precision", "backend", "version")
            engines.append(
                {name: entry[name] for name in described} | build_facts(entry, report_of(bundle, entry))
            )
        results[row.name] = {
            "kind": row.kind,
            "engines": engines,
            "seconds": round(seconds, 1),
            "error": error,
        }
        shutil.rmtree(bundle)
    return {
        "benchmark": "engine-builds-small" if options.small else "engine-builds",
        "sm": options.sm,
        "sizes": options.size,
        "batch": options.batch,
        "bounds": {"seconds": SECONDS_BOUND, "peak_bytes": BYTES_BOUND},
        "variants": results,
        "machine": facts,
        "load_average_after": machine.load_average(),
    }


def report_of(bundle: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """Read the report of an engine in a manifest."""
    found: dict[str, Any] = json.loads((bundle / entry["report"]["path"]).read_text())
    return found


def build_facts(entry: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """Time and memory of an engine's build, its layers and its size."""
    names = ("seconds", "peak_bytes", "layers", "attentions", "fused")
    return {name: report["built"][name] for name in names} | {"bytes": entry["file"]["size"]}


_COLUMNS = ("", "engine", "build, s", "peak, GB", "engine, MB", "layers", "fused attention", "holds")


def _rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, variant in result["variants"].items():
        for engine in variant["engines"]:
            holds = engine["seconds"] <= SECONDS_BOUND and engine["peak_bytes"] <= BYTES_BOUND
            rows.append(
                (
                    name,
                    f"{engine['part']} {engine['label']}",
                    f"{engine['seconds']:.1f}",
                    f"{engine['peak_bytes'] / 1e9:.2f}",
                    f"{engine['bytes'] / 1e6:.0f}",
                    str(engine["layers"]),
                    f"{engine['fused']} of {engine['attentions']}",
                    "yes" if holds else "NO",
                )
            )
    return rows


if __name__ == "__main__":
    main()
