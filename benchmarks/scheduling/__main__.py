"""Serve random requests by the scheduler in virtual time, and compare it with serial and static batches.

    python -m benchmarks.scheduling [--requests 2000] [--seeds 5] [--output]

The scheduler is the real one; calls cost what a curve says. With --output, a plot is saved beside the result.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from benchmarks.recording import machine, report
from benchmarks.scheduling.overhead import overhead
from benchmarks.scheduling.plot import save_plot
from benchmarks.scheduling.policies import Policy, Served, continuous, serial, static
from benchmarks.scheduling.simulation import Cost, curve_cost
from benchmarks.scheduling.workload import H200, LINEAR, OBJECTIVE, STEPS, Request, flood, poisson
from sd2rt.runtime.scheduling.settings import Settings
from sd2rt.runtime.scheduling.work import Priority

POLICIES: dict[str, Policy] = {
    "serial": serial,
    "static": static,
    "static, together": partial(static, together=True),
    "continuous": continuous(H200),
    "continuous, deadlines": continuous(H200, deadlines=True),
}
RATES = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
LINEAR_RATES = (0.3, 0.6, 0.9)
GOALS = {1.5: 0.95, 2.0: 0.85}
"""Least share of requests that meet their objective, by rate."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scheduling", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--requests", type=int, default=2000, help="of each run")
    parser.add_argument("--seeds", type=int, default=5)
    report.add_output(parser)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "scheduling",
        "machine": machine.facts(),
        "requests": options.requests,
        "seeds": options.seeds,
        "steps": STEPS,
        "objective": OBJECTIVE,
        "curve": H200,
    }
    with report.interruptible(result, parser.prog):
        result |= measure(options.requests, range(1, options.seeds + 1))
    result["load_average_after"] = machine.load_average()
    if options.output is not None and result["complete"]:
        picture = report.path_of(result, options.output).with_suffix(".png")
        picture.parent.mkdir(parents=True, exist_ok=True)
        save_plot(result, picture)
        result["plot"] = picture.name
    report.finish(result, ("met", *map(str, RATES)), rows(result), options.output)


def measure(count: int, seeds: Iterable[int]) -> dict[str, Any]:
    """Run every comparison with ``count`` requests for each seed."""
    seeds = list(seeds)
    return {
        "rates": list(RATES),
        "goals": [{"rate": rate, "met": goal} for rate, goal in GOALS.items()],
        "policies": {
            name: by_rate(policy, curve_cost(H200), count, seeds) for name, policy in POLICIES.items()
        },
        "padded": {
            name: by_rate(POLICIES[name], padded_cost(H200), count, seeds)
            for name in ("continuous", "continuous, deadlines")
        },
        "linear": [linear(rate, count, seeds) for rate in LINEAR_RATES],
        "priorities": [
            priorities(name, curve, rate, count, seeds)
            for name, curve, rate in (("linear", LINEAR, 0.9), ("H200", H200, 2.0), ("H200", H200, 3.0))
        ],
        "fairness": fairness(seeds),
        "estimates": estimates(count, seeds),
        "overhead": [overhead(waiting, curve) for curve in (LINEAR, H200) for waiting in (10, 100, 1000)],
    }


def padded_cost(curve: dict[int, float]) -> Cost:
    """Costs if every call is padded to the next size of a curve."""
    return lambda lane, batch: curve[min(size for size in curve if size >= batch)]


def by_rate(policy: Policy, cost: Cost, count: int, seeds: list[int]) -> list[dict[str, Any]]:
    """Shares of met objectives, of refusals, and latencies, for each rate."""
    return [
        summaries(_case(policy, poisson(count, rate, H200[1], seed), cost) for seed in seeds) | {"rate": rate}
        for rate in RATES
    ]


def _case(policy: Policy, requests: list[Request], cost: Cost) -> dict[str, float]:
    served = policy(requests, cost)
    slowdown = slowdowns(served, requests)
    return {
        "met": sum(end <= each.objective for each, end in served.ends.items()) / len(requests),
        "refused": 1 - len(served.ends) / len(requests),
        "slowdown": statistics.median(slowdown),
        "slowdown_p95": percentile(slowdown, 95),
        "batch": statistics.mean(served.batches),
    }


def slowdowns(served: Served, requests: Iterable[Request]) -> list[float]:
    """Latencies of the requests that were served, over their own times."""
    return [(served.ends[each] - each.at) / each.own_seconds for each in requests if each in served.ends]


def percentile(values: list[float], percent: int) -> float:
    """A percentile; the only value if there is one."""
    return statistics.quantiles(values, n=100)[percent - 1] if len(values) > 1 else values[0]


def summaries(cases: Iterable[dict[str, float]]) -> dict[str, Any]:
    """Median, minimum and maximum over cases, of each of their values."""
    listed = list(cases)
    return {name: report.summary(case[name] for case in listed) for name in listed[0]}


def linear(rate: float, count: int, seeds: list[int]) -> dict[str, Any]:
    """Mean latency over first come first served, where batches do not pay."""
    cost = curve_cost(LINEAR)
    callers = ("one caller", continuous(LINEAR)), ("a caller each", continuous(LINEAR, key=id))

    def case(seed: int) -> dict[str, float]:
        requests = poisson(count, rate, LINEAR[1], seed)
        first_come = _mean_latency(serial(requests, cost))
        served = {name: policy(requests, cost) for name, policy in callers}
        return {name: _mean_latency(each) / first_come for name, each in served.items()} | {
            "largest batch": max(max(each.batches) for each in served.values())
        }

    return {"rate": rate} | summaries(case(seed) for seed in seeds)


def _mean_latency(served: Served) -> float:
    return statistics.mean(end - each.at for each, end in served.ends.items())


def priorities(
    name: str, curve: dict[int, float], rate: float, count: int, seeds: list[int]
) -> dict[str, Any]:
    """Latencies by class over the requests' own times (95th percentile), with and without preemption."""

    def case(preempt: bool, seed: int) -> dict[str, float]:
        requests = poisson(count, rate, curve[1], seed, classes=True)
        served = continuous(curve, settings=Settings(preempt=preempt))(requests, curve_cost(curve))
        return {
            each.name.lower(): percentile(
                slowdowns(served, (request for request in requests if request.priority == each)), 95
            )
            for each in Priority
        } | {"mean": statistics.mean(slowdowns(served, requests))}

    return {
        "curve": name,
        "rate": rate,
        **{
            label: summaries(case(preempt, seed) for seed in seeds)
            for label, preempt in (("preempt", True), ("running images stay", False))
        },
    }


def fairness(seeds: list[int]) -> dict[str, Any]:
    """Latencies of one caller's requests over their own times, while another has asked for 200 images at once."""

    def case(fair: bool, seed: int) -> dict[str, float]:
        flooding, others = flood(200, 20, LINEAR[1], seed)
        requests = sorted((*flooding, *others), key=lambda request: request.at)
        caller = dict.fromkeys(flooding, "flood") | dict.fromkeys(others, "other" if fair else "flood")
        policy = continuous(LINEAR, key=caller.__getitem__)
        slowdown = slowdowns(policy(requests, curve_cost(LINEAR)), others)
        return {"median": statistics.median(slowdown), "max": max(slowdown)}

    return {
        label: summaries(case(fair, seed) for seed in seeds)
        for label, fair in (("fair", True), ("first come, first served", False))
    }


def estimates(count: int, seeds: list[int]) -> list[dict[str, Any]]:
    """Latency over its estimate when the request was submitted; later requests share its calls."""

    def case(rate: float, seed: int) -> dict[str, float]:
        requests = poisson(count, rate, H200[1], seed)
        served = continuous(H200, estimates=True)(requests, curve_cost(H200))
        ratios = [(served.ends[each] - each.at) / (served.estimates[each] - each.at) for each in requests]
        return {f"p{percent}": percentile(ratios, percent) for percent in (10, 50, 90)}

    return [{"rate": rate} | summaries(case(rate, seed) for seed in seeds) for rate in (1.0, 2.0, 3.0)]


def rows(result: dict[str, Any]) -> Iterator[list[str]]:
    """Shares that meet their objective, by policy and rate."""
    for name, cases in result.get("policies", {}).items():
        yield [name, *(f"{case['met']['median']:.3f}" for case in cases)]
    for name, cases in result.get("padded", {}).items():
        yield [f"{name}, padded", *(f"{case['met']['median']:.3f}" for case in cases)]


if __name__ == "__main__":
    main()
