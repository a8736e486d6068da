"""Route random requests to 1, 8 and 64 schedulers in virtual time, by several policies.

    python -m benchmarks.routing [--per-device 40] [--seeds 3] [--output]

Schedulers are the real ones; calls cost what a curve says, and bundles take a time to load.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.recording import machine, report
from benchmarks.routing import workload
from benchmarks.routing.fleet import MAX_IMAGES, Device, serve
from benchmarks.routing.routers import AFFINITIES, POLICIES, SPILL, Affinity, Chooser, Policy
from benchmarks.routing.workload import Request, Traffic, draw
from benchmarks.scheduling.workload import H200, OBJECTIVE, STEPS

FLEETS = (1, 8, 64)
RATES = (1.0, 1.5, 2.0)
PERIODS = (0.0, 0.2, 1.0, 5.0)
"""Seconds between looks of routers that have old news."""
SPILLS = (2, 4, 8, 16, 64)
ROUTERS = 8
"""Routers that share the requests where news are old."""
_LEAST_REQUESTS = 600
_DECISIONS = 300


@dataclass(frozen=True, slots=True)
class Case:
    """One run."""

    devices: int
    rate: float
    traffic: Traffic
    policy: Policy
    affinity: Affinity = "none"
    mixed: bool = True
    spill: int = SPILL
    period: float = 0.0
    routers: int = 1


def cases() -> list[Case]:
    """List all cases, the longest first."""
    mixed = [
        Case(devices, rate, traffic, policy, affinity)
        for devices in FLEETS
        for rate in RATES
        for traffic in ("poisson", "bursty")
        for policy in POLICIES
        for affinity in (*AFFINITIES, *(("loading counted",) if policy == "least work" else ()))
        if devices > 1 or (policy == "least work" and affinity == "none")
    ]
    alike = [
        Case(devices, 2.0, traffic, policy, mixed=False)
        for devices in FLEETS
        for traffic in ("poisson", "bursty")
        for policy in POLICIES
        if devices > 1 or policy == "least work"
    ]
    followed: tuple[tuple[Policy, Affinity], ...] = (
        ("random", "bundle"),
        ("power of two", "bundle"),
        ("least work", "bundle"),
        ("least work", "loading counted"),
    )
    late = [
        Case(64, 1.5, "poisson", policy, affinity, period=period, routers=ROUTERS)
        for policy, affinity in followed
        for period in PERIODS
    ]
    pairs: tuple[Policy, ...] = ("power of two", "least work")
    spilling = [
        Case(64, rate, "poisson", policy, "bundle", spill=spill)
        for rate in (1.5, 2.0)
        for policy in pairs
        for spill in SPILLS
        if spill != SPILL
    ]
    return sorted((*mixed, *alike, *late, *spilling), key=lambda case: -case.devices)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--per-device", type=int, default=40, help="requests for each device; at least 600 in all"
    )
    parser.add_argument("--seeds", type=int, default=3)
    report.add_output(parser)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "routing",
        "machine": machine.facts(),
        "per_device": options.per_device,
        "least_requests": _LEAST_REQUESTS,
        "seeds": options.seeds,
        "steps": STEPS,
        "objective": OBJECTIVE,
        "curve": H200,
        "bundles": workload.BUNDLES,
        "sizes": workload.SIZES,
        "keep": workload.KEEP,
        "load_seconds": workload.LOAD_SECONDS,
        "spill": SPILL,
        "max_images": MAX_IMAGES,
        "bursts": [workload.BURST, workload.QUIET, workload.BURST_SECONDS, workload.QUIET_SECONDS],
    }
    began = time.monotonic()
    with report.interruptible(result, parser.prog):
        result["cases"] = measure(cases(), options.per_device, options.seeds)
        result["decisions"] = [decision_us(devices) for devices in (*FLEETS, 512)]
    result["seconds"] = round(time.monotonic() - began, 1)
    result["load_average_after"] = machine.load_average()
    header = (
        "devices",
        "rate",
        "traffic",
        "policy",
        "affinity",
        "met",
        "p95 of latency over own time",
        "loads",
    )
    report.finish(result, header, rows(result), options.output)


def measure(wanted: list[Case], per_device: int, seeds: int) -> list[dict[str, Any]]:
    """Run each case with each seed, on all of this process's CPUs."""
    runs = [(case, seed) for case in wanted for seed in range(1, seeds + 1)]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        values = list(
            pool.map(run, *zip(*((case, per_device, seed) for case, seed in runs), strict=True), chunksize=1)
        )
    return [
        asdict(case) | {name: report.summary(each[name] for each in own) for name in own[0]}
        for index, case in enumerate(wanted)
        if (own := values[index * seeds : (index + 1) * seeds])
    ]


def run(case: Case, per_device: int, seed: int) -> dict[str, float]:
    """Run a case once.

    Returns:
        ``met``, share of requests that met their objective; ``refused``; ``goodput``, of these by second and device;
        ``slowdown`` and ``slowdown_p95``, latency over a request's own time; ``loads`` for 100 requests; ``batch``.
    """
    count = max(_LEAST_REQUESTS, per_device * case.devices)
    requests = draw(count, case.rate, case.devices, case.traffic, seed, case.mixed)
    devices = [Device(number) for number in range(case.devices)]
    router = Chooser(
        devices, case.policy, case.affinity, seed, spill=case.spill, period=case.period, routers=case.routers
    )
    served = serve(requests, devices, router)
    slowdowns = [(end - each.at) / each.own_seconds for each, end in served.ends.items()]
    met = sum(end <= each.objective for each, end in served.ends.items())
    return {
        "met": met / count,
        "refused": 1 - len(served.ends) / count,
        "goodput": met / max(served.ends.values()) / case.devices,
        "slowdown": statistics.median(slowdowns),
        "slowdown_p95": statistics.quantiles(slowdowns, n=20)[-1],
        "loads": 100 * served.loads / count,
        "batch": served.images / served.calls,
    }


def decision_us(count: int) -> dict[str, Any]:
    """Microseconds of Python for a choice by least work among many devices that have some requests."""
    devices = [Device(number) for number in range(count)]
    requests = draw(_DECISIONS + 4 * count, 2.0, count, "poisson", 1)
    for index, request in enumerate(requests[_DECISIONS:]):
        devices[index % count].accept(request, 0.0)
    times: dict[str, dict[str, float]] = {}
    for policy, affinity in (("power of two", "bundle"), ("least work", "loading counted")):
        router = Chooser(devices, policy, affinity, 1, period=1e9)  # type: ignore[arg-type]
        taken = [_timed(router, request) for request in requests[:_DECISIONS]]
        times[f"{policy}, {affinity}"] = report.summary(taken, 1)
    return {"devices": count, "us": times}


def _timed(router: Chooser, request: Request) -> float:
    start = time.perf_counter()
    router.choose(request, 1.0)
    return (time.perf_counter() - start) * 1e6


def rows(result: dict[str, Any]) -> Iterator[list[str]]:
    """A line a case."""
    for case in result.get("cases", ()):
        late = f", every {case['period']:g} s" if case["routers"] > 1 else ""
        yield [
            str(case["devices"]) + ("" if case["mixed"] else " alike"),
            f"{case['rate']:g}",
            case["traffic"],
            case["policy"] + late,
            case["affinity"] + ("" if case["spill"] == SPILL else f", spill {case['spill']}"),
            f"{case['met']['median']:.3f}",
            f"{case['slowdown_p95']['median']:.2f}",
            f"{case['loads']['median']:.1f}",
        ]


if __name__ == "__main__":
    main()
