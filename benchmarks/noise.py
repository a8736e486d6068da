"""Cost of drawing noise: an image's initial noise with seeding, and the fresh noise of one step.

    python -m benchmarks.noise [--rng cpu cuda]

"cold" is the first draw of a process, over several processes. "after a pause" is a draw after the CPU caches were
filled with other data, as between two engine calls.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.recording import machine, process, report
from sd2rt.runtime.rng.select import make_generator

MILLISECONDS_BOUND = 3.0
INITIAL = {"512": (4, 64, 64), "768": (4, 96, 96), "1024": (4, 128, 128)}
STEP = (4, 16, 16)
_PAUSE_SECONDS = 0.02
_OTHER_BYTES = 64 << 20

_COLD = """
import time
import numpy
from sd2rt.runtime.rng.select import make_generator
start = time.perf_counter_ns()
make_generator({rng!r}, 7).randn({shape!r})
print(time.perf_counter_ns() - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.noise", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rng", nargs="+", default=["cpu", "cuda"], help="generators, as in --rng of sd2rt run"
    )
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--processes", type=int, default=10, help="processes for the cold draws")
    report.add_output(parser)
    options = parser.parse_args()
    facts = machine.facts()
    cases: list[dict[str, Any]] = []
    with process.OthersClock() as other_load:
        for side, shape in INITIAL.items():
            for rng in options.rng:
                cold = _cold(rng, shape, options.processes)
                warm = _timed(partial(_initial, rng, shape), options.repetitions)
                cases.append({"draw": f"initial, {side}", "rng": rng, "cold": cold, "warm": warm})
        for rng in options.rng:
            draw = partial(make_generator(rng, 7).randn, STEP)
            warm, after_pause = (
                _timed(draw, options.repetitions),
                _timed(draw, options.repetitions // 4, pause=True),
            )
            cases.append({"draw": "step, 128", "rng": rng, "warm": warm, "after_pause": after_pause})
    bounded = [case for case in cases if case["draw"] == "initial, 768"]
    result = {
        "benchmark": "noise",
        "unit": "ms",
        "cases": cases,
        "bounds": {
            case["rng"]: {
                "bound_ms": MILLISECONDS_BOUND,
                "holds": max(case[kind]["median"] for kind in ("cold", "warm")) <= MILLISECONDS_BOUND,
            }
            for case in bounded
        },
        "others_cpu_seconds": other_load.seconds,
        "machine": facts,
        "load_average_after": machine.load_average(),
    }
    kinds = [(kind, key) for kind in ("cold", "warm", "after_pause") for key in ("median", "min")]
    rows = [
        (
            case["draw"],
            case["rng"],
            *(f"{case[kind][key]:.2f}" if kind in case else "" for kind, key in kinds),
            f"<= {MILLISECONDS_BOUND:g}" if case in bounded else "",
        )
        for case in cases
    ]
    header = ("draw", "rng", "cold ms", "min", "warm ms", "min", "after a pause ms", "min", "bound")
    report.finish(result, header, rows, options.output)


def _initial(rng: str, shape: tuple[int, ...]) -> None:
    make_generator(rng, 7).randn(shape)


def _timed(draw: Callable[[], object], repetitions: int, pause: bool = False) -> dict[str, float]:
    """Milliseconds per call; with ``pause``, fill the CPU caches with other data before each."""
    other = np.zeros(_OTHER_BYTES if pause else 1, np.uint8)
    elapsed_ms = []
    draw()
    for _ in range(repetitions):
        if pause:
            time.sleep(_PAUSE_SECONDS)
            other += 1
        start = time.perf_counter_ns()
        draw()
        elapsed_ms.append((time.perf_counter_ns() - start) / 1e6)
    return report.summary(elapsed_ms)


def _cold(rng: str, shape: tuple[int, ...], processes: int) -> dict[str, float]:
    code = _COLD.format(rng=rng, shape=shape)
    runs = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(processes)
    )
    return report.summary(json.loads(run.stdout) / 1e6 for run in runs)


if __name__ == "__main__":
    main()
