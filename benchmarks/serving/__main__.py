"""Measure a real `sd2rt serve` by real clients: latency, starts, ends, faults, overload, growth.

    python -m benchmarks.serving [--bundle BUNDLE] [--output]

About six minutes on 2 cores; the machine should be idle.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.recording import machine, report
from benchmarks.recording.bundle import add_bundle, bundle_or_demo
from benchmarks.serving.latency import BOUND, latency
from benchmarks.serving.lifecycle import (
    AGAIN_SECONDS,
    CANCEL_EXTRA_SECONDS,
    DOWN_SECONDS,
    FRONT_BYTES,
    GROWTH_BYTES,
    READY_SECONDS,
    SLOW_RATIO,
    beside_slow_clients,
    cancellations,
    growth,
    kills,
    starts,
)
from benchmarks.serving.overload import GOODPUT, LIVEZ_SECONDS, capacity, overload
from benchmarks.serving.server_process import Server

BOUNDS = {
    "ratio": BOUND,
    "front_bytes": FRONT_BYTES,
    "ready_seconds": READY_SECONDS,
    "cancel_extra_seconds": CANCEL_EXTRA_SECONDS,
    "down_seconds": DOWN_SECONDS,
    "again_seconds": AGAIN_SECONDS,
    "goodput": GOODPUT,
    "livez_seconds": LIVEZ_SECONDS,
    "growth_bytes": GROWTH_BYTES,
    "slow_ratio": SLOW_RATIO,
}
"""Bounds of the specification: reported, never asserted."""
_TIMES = 4.0
_QUEUE = 16
_KILLS_IN_A_MINUTE = 31.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.splitlines()[0])
    add_bundle(parser)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--pairs", type=int, default=40, help="images by HTTP and by Python, in turns")
    parser.add_argument("--seconds", type=float, default=60, help="of overload")
    parser.add_argument("--requests", type=int, default=1000, help="over which growth is measured")
    parser.add_argument("--repetitions", type=int, default=5, help="of starts, kills and clients that leave")
    report.add_output(parser)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "serving",
        "machine": machine.facts(),
        "steps": options.steps,
        "bounds": BOUNDS,
    }
    with bundle_or_demo(options.bundle) as bundle, report.interruptible(result, parser.prog):
        result |= measure(Path(bundle), options)
    result["load_average_after"] = machine.load_average()
    report.finish(result, ("", "median", "min", "max"), rows(result), options.output)


def measure(bundle: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run every measurement, each on a server of its own."""
    found: dict[str, Any] = {"bundle": bundle.name, "starts": starts([bundle], options.repetitions)}
    with Server(bundle) as server:
        found["latency"] = latency(server, bundle, options.steps, options.pairs)
    with Server(bundle) as server:
        found["cancel"] = cancellations(server, options.repetitions)
        found["slow"] = beside_slow_clients(server, options.steps, options.pairs // 4 or 1)
        found["growth"] = growth(server, options.requests)
    with Server(bundle) as server:
        found["kill"] = kills(server, options.repetitions, _KILLS_IN_A_MINUTE)
    # Shorter than the number of senders: a queue that holds all of them would refuse nobody.
    with Server(bundle, "--max-queue", str(_QUEUE)) as server:
        most = capacity(server, options.steps, max(options.seconds / 4, 2))
        loaded = overload(server, options.steps, _TIMES * most, options.seconds, seed=1)
        found["overload"] = {"capacity": most, "times": _TIMES, **loaded}
        found["overload"]["goodput"] = loaded["images_per_second"] / most
    return found


def rows(result: dict[str, Any]) -> Iterator[list[str]]:
    """One line a measurement."""
    for section, name in (
        ("latency", "http_seconds"),
        ("latency", "python_seconds"),
        ("latency", "ratio"),
        ("starts", "ready_seconds"),
        ("starts", "front_bytes"),
        ("cancel", "free_seconds"),
        ("slow", "ratio"),
        ("kill", "down_seconds"),
        ("kill", "again_seconds"),
        ("overload", "livez_seconds"),
    ):
        if section in result:
            values = result[section][name]
            yield [f"{section}: {name}", *(f"{values[key]:g}" for key in ("median", "min", "max"))]
    if "overload" in result:
        yield ["overload: goodput", f"{result['overload']['goodput']:.3f}", "", ""]


if __name__ == "__main__":
    main()
