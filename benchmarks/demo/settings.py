"""Compare samplers, steps, guidance and half precision by the demo's text-to-image score.

    python -m benchmarks.demo.settings --half BUNDLE --output

Ctrl-C stops the run and writes the partial result.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.demo import sets
from benchmarks.demo.painter import Settings
from benchmarks.demo.score_tables import SETTINGS_COLUMNS
from benchmarks.demo.sd2rt_painter import Sd2rtPainter
from benchmarks.demo.tally import Tally
from benchmarks.recording import machine, report

NAME = "demo-settings"


@dataclass(frozen=True, slots=True)
class Row:
    """One combination of settings."""

    sampler: str = "euler-a"
    """Default: the checkpoint's sampler."""
    steps: int = 25
    guidance: float = 4.0
    precision: str = "fp32"

    def __str__(self) -> str:
        return f"{self.sampler}, {self.steps} steps, guidance {self.guidance:g}, {self.precision}"


ROWS = (
    Row(),
    Row(precision="fp16"),
    Row(steps=12),
    Row(steps=8),
    Row("ddim"),
    Row("ddim", 12),
    Row("dpmpp-2m", 12),
    Row("dpmpp-2m", 8),
    Row("unipc", 8),
    Row("euler"),
    Row("pndm"),
    Row("pndm", 50),
    Row(guidance=1.0),
    Row(guidance=2.0),
    Row(guidance=7.5),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo.settings", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--bundle", default="demo")
    parser.add_argument(
        "--half", metavar="BUNDLE", help="the bundle in fp16; without it, the fp16 row is left out"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N prompts")
    parser.add_argument("--threads", type=int, help="default: one per core")
    parser.add_argument("--batch", type=int, default=8, help="images per batch")
    report.add_output(parser)
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    result = {
        "benchmark": NAME,
        "limit": options.limit,
        "rows": results,
        "machine": machine.facts(),
    }
    with report.interruptible(result, "benchmarks.demo.settings"):
        for row in ROWS:
            if row.precision == "fp32" or options.half is not None:
                _measure(row, options, results)
    cells = [
        (row["name"], *(f"{row['counts'][key]['share']:.1%}" for key in SETTINGS_COLUMNS)) for row in results
    ]
    report.finish(result, ("", *SETTINGS_COLUMNS.values()), cells, options.output)
    if not result["complete"]:
        sys.exit(130)


def _measure(row: Row, options: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Measure a row; append its counts only when complete."""
    settings, tally = Settings(row.steps, row.guidance, row.sampler), Tally()
    bundle = options.bundle if row.precision == "fp32" else options.half
    with Sd2rtPainter(
        bundle, threads=options.threads, batch=options.batch, precision=row.precision
    ) as painter:
        start = time.perf_counter()
        sets.run("text", painter, settings, tally, batch=options.batch, limit=options.limit)
    seconds = time.perf_counter() - start
    print(f"{row}: {seconds:.0f} s", file=sys.stderr, flush=True)
    results.append({"name": str(row), **tally.result(), "seconds": round(seconds, 2)})


if __name__ == "__main__":
    main()
