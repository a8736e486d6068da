"""Serve random requests on this CPU for real: by the scheduler, first come first served, and in static batches.

    python -m benchmarks.scheduling.demo [--requests 40] [--seeds 3] [--rates 0.5 0.8] [--output]

Every request is a call of its own on one AsyncPipeline. The policies take turns with the same requests, seed by seed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from benchmarks.recording import machine, report
from benchmarks.recording.bundle import add_bundle, bundle_or_demo
from benchmarks.recording.process import OthersClock
from benchmarks.scheduling.workload import OBJECTIVE, STEPS, Request, poisson
from sd2rt.runtime import AsyncPipeline
from sd2rt.runtime import Request as ImageRequest

STATIC_BATCH = 4
_PROMPT = "a red circle left of a blue square"
_WARM_UP = 3

Serve = Callable[[AsyncPipeline, Sequence[Request]], Awaitable[dict[Request, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scheduling.demo", description=__doc__.splitlines()[0]
    )
    add_bundle(parser)
    parser.add_argument("--requests", type=int, default=40, help="of each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[0.5, 0.8], help="in times of what batches of 1 can do"
    )
    report.add_output(parser)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "scheduling-demo",
        "machine": machine.facts(),
        "requests": options.requests,
        "seeds": options.seeds,
        "steps": STEPS,
        "objective": OBJECTIVE,
        "static_batch": STATIC_BATCH,
    }
    with (
        report.interruptible(result, parser.prog),
        bundle_or_demo(options.bundle) as bundle,
        OthersClock() as others,
    ):
        result |= asyncio.run(measure(bundle, options.requests, options.seeds, options.rates))
    result["others_cpu_seconds"] = others.seconds
    result["load_average_after"] = machine.load_average()
    report.finish(result, ("policy", "rate", "mean latency s", "met"), rows(result), options.output)


async def measure(bundle: str, count: int, seeds: int, rates: Sequence[float]) -> dict[str, Any]:
    """Measure each policy at each rate, with ``count`` requests for each seed."""
    async with AsyncPipeline.open(bundle) as pipe:
        for _ in range(_WARM_UP):
            await _image(pipe, max(STEPS))
        own = {steps: await _seconds(pipe, steps) for steps in set(STEPS)}
        step_seconds = sum(own[steps] for steps in STEPS) / sum(STEPS)
        cases = []
        for rate in rates:
            served: dict[str, list[dict[str, float]]] = {name: [] for name in POLICIES}
            for seed in range(seeds):
                requests = [
                    Request(each.at, each.steps, own[each.steps])
                    for each in poisson(count, rate, step_seconds, seed)
                ]
                for name, serve in POLICIES.items():
                    served[name].append(_facts(requests, await serve(pipe, requests)))
            cases.append({"rate": rate, "policies": served})
    return {"own_seconds": own, "cases": cases}


async def _image(pipe: AsyncPipeline, steps: int) -> None:
    await pipe(_PROMPT, num_inference_steps=steps, seed=steps)


async def _seconds(pipe: AsyncPipeline, steps: int) -> float:
    clock = asyncio.get_running_loop().time
    times = []
    for _ in range(5):
        start = clock()
        await _image(pipe, steps)
        times.append(clock() - start)
    return statistics.median(times)


async def _continuous(pipe: AsyncPipeline, requests: Sequence[Request]) -> dict[Request, float]:
    """Pass on each request when it comes."""
    return await _arrive(requests, lambda request: _image(pipe, request.steps))


async def _first_come(pipe: AsyncPipeline, requests: Sequence[Request]) -> dict[Request, float]:
    """Begin a request when the one before is finished."""
    lock = asyncio.Lock()

    async def serve(request: Request) -> None:
        async with lock:
            await _image(pipe, request.steps)

    return await _arrive(requests, serve)


async def _static(pipe: AsyncPipeline, requests: Sequence[Request]) -> dict[Request, float]:
    """Take up to four requests that wait, and the next ones when all of these are finished."""
    lock, waiting = asyncio.Lock(), list[Request]()
    finished = {request: asyncio.Event() for request in requests}

    async def serve(request: Request) -> None:
        waiting.append(request)
        async with lock:
            batch, waiting[:STATIC_BATCH] = waiting[:STATIC_BATCH], []
            if batch:
                images = [
                    ImageRequest(prompt=_PROMPT, num_inference_steps=each.steps, seed=each.steps)
                    for each in batch
                ]
                await pipe.generate(images)
                for each in batch:
                    finished[each].set()
        await finished[request].wait()

    return await _arrive(requests, serve)


async def _arrive(
    requests: Sequence[Request], serve: Callable[[Request], Awaitable[None]]
) -> dict[Request, float]:
    """Serve each request from its time on; return the times at which they were finished."""
    clock = asyncio.get_running_loop().time
    start, ends = clock(), dict[Request, float]()

    async def one(request: Request) -> None:
        await asyncio.sleep(max(0.0, start + request.at - clock()))
        await serve(request)
        ends[request] = clock() - start

    await asyncio.gather(*(one(request) for request in requests))
    return ends


POLICIES: dict[str, Serve] = {
    "first come, first served": _first_come,
    "static": _static,
    "continuous": _continuous,
}


def _facts(requests: Sequence[Request], ends: dict[Request, float]) -> dict[str, float]:
    return {
        "latency": round(statistics.mean(ends[each] - each.at for each in requests), 4),
        "slowdown": round(
            statistics.median((ends[each] - each.at) / each.own_seconds for each in requests), 4
        ),
        "met": sum(ends[each] <= each.objective for each in requests) / len(requests),
    }


def rows(result: dict[str, Any]) -> list[tuple[object, ...]]:
    return [
        (
            name,
            case["rate"],
            *(report.summary(each[key] for each in served)["median"] for key in ("latency", "met")),
        )
        for case in result.get("cases", ())
        for name, served in case["policies"].items()
    ]


if __name__ == "__main__":
    main()
