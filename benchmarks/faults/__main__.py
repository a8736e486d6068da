"""Search for faults of one kind, and count what held.

    python -m benchmarks.faults KIND                 all cases of a kind
    python -m benchmarks.faults KIND --cases 100 --seed 3

Each case is written to the file of cases when it ends; an interrupted search keeps what it has counted. Exits with 1
if a case did not hold.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any, Protocol, cast

from benchmarks.faults.recorder import FAULTS, Recorder
from benchmarks.recording import machine, report

KINDS = {
    "kill": "commands that are killed at any moment, and full disks",
    "damage": "bundles and prepared files with damaged bytes",
    "swap": "bundles that are replaced while they are opened or used",
    "hostile": "hostile files, streams and sizes",
    "interleave": "interleaved threads, closed runs and collected generators",
    "growth": "memory, threads and descriptors over many images",
    "fuzz": "random command lines, manifests and Python calls",
    "ray": "Ray Data jobs whose driver or actor is killed",
    "serve": "clients that leave, killed workers and fronts, hostile requests, memory over many",
    "ray-serve": "replicas of Ray Serve and their workers that are killed under load",
    "triton": "clients that leave, hostile requests, killed workers, stubs and servers under Triton",
}


class Kind(Protocol):
    """Module of a kind of fault."""

    CASES: int
    """Number of cases unless ``--cases`` is given."""

    def run(self, recorder: Recorder, cases: int, seed: int) -> None:
        """Run the cases, and record each when it ends."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--cases", type=int, help="number of cases; default: the kind's own")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cases (default: 0)")
    parser.add_argument("--record", type=Path, help="file of cases; default: out/faults/KIND.jsonl")
    report.add_output(parser)
    options = parser.parse_args()
    kind = cast(Kind, importlib.import_module(f"benchmarks.faults.{options.kind.replace('-', '_')}"))
    cases = kind.CASES if options.cases is None else options.cases
    result: dict[str, Any] = {
        "benchmark": f"faults-{options.kind}",
        "machine": machine.facts(),
        "seed": options.seed,
        "cases": cases,
    }
    with Recorder(options.record or Path("out/faults") / f"{options.kind}.jsonl") as recorder:
        with report.interruptible(result, "benchmarks.faults"):
            kind.run(recorder, cases, options.seed)
        result |= recorder.facts()
        report.finish(result, ("group", "held", *FAULTS), recorder.rows(), options.output)
        if recorder.faults:
            sys.exit(1)


if __name__ == "__main__":
    main()
