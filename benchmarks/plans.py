"""Time to build a sampler's plan, with every cache empty and again from the cache.

    python -m benchmarks.plans [--steps N] [--repetitions N]

The cold time is paid by the first request of a process and includes the noise schedule. "again" is every later
request with the same options. LCM and TCD choose from as many timesteps as there are steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.recording import machine, report
from sd2rt.engines.bundle.sampler_config import SAMPLER_OPTIONS, NoiseConfig, SamplerConfig, default_sampler
from sd2rt.runtime.samplers import SAMPLERS, SamplingOptions, make_plan
from sd2rt.runtime.samplers.plan import Plan

COLD_MS_BOUND = 10.0
AGAIN_MS_BOUND = 0.1

NOISE = NoiseConfig(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plans", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=30)
    report.add_output(parser)
    options = parser.parse_args()
    facts = machine.facts()
    cases = [_measure(config, options) for config in _configurations(options.steps)]
    worst = {key: max(case[key]["median"] for case in cases) for key in ("cold_ms", "again_ms")}
    result = {
        "benchmark": "plans",
        "steps": options.steps,
        "cases": cases,
        "worst_median": worst,
        "bounds": {
            "cold_ms": {"bound": COLD_MS_BOUND, "holds": worst["cold_ms"] <= COLD_MS_BOUND},
            "again_ms": {"bound": AGAIN_MS_BOUND, "holds": worst["again_ms"] <= AGAIN_MS_BOUND},
        },
        "machine": facts,
        "load_average_after": machine.load_average(),
    }
    rows = [
        (
            f"{case['sampler']}, {case['levels']}",
            case["calls"],
            *(f"{case['cold_ms'][key]:.2f}" for key in ("median", "max")),
            *(f"{case['again_ms'][key]:.4f}" for key in ("median", "max")),
        )
        for case in cases
    ]
    bounds = ("bound", "", f"<= {COLD_MS_BOUND:g}", "", f"<= {AGAIN_MS_BOUND:g}", "")
    header = ("sampler, levels", "calls", "cold ms", "worst", "again ms", "worst")
    report.finish(result, header, [*rows, bounds], options.output)


def _configurations(steps: int) -> Iterator[SamplerConfig]:
    """Every sampler at its highest order, with default noise levels and with the most expensive ones."""
    for name in SAMPLERS:
        supported = SAMPLER_OPTIONS[name]
        changes: dict[str, Any] = {}
        if "original_inference_steps" in supported:
            changes["original_inference_steps"] = steps
        if "solver_order" in supported:
            changes["solver_order"] = 4 if supported["solver_order"] == 4 else 3
        yield default_sampler(name, **changes)
        if "levels" in supported and name not in ("ddim", "ddpm"):
            yield default_sampler(name, **changes, levels="beta")


def _measure(config: SamplerConfig, options: argparse.Namespace) -> dict[str, Any]:
    sampling = SamplingOptions(options.steps)
    cold, again = [], []
    for _ in range(options.repetitions):
        _empty_caches()
        first, plan = _timed(config, sampling)
        second, same = _timed(config, sampling)
        assert same is plan
        cold.append(first)
        again.append(second)
    return {
        "sampler": config.name,
        "levels": config.levels,
        "calls": len(plan.steps),
        "cold_ms": report.summary(cold),
        "again_ms": report.summary(again),
    }


def _timed(config: SamplerConfig, options: SamplingOptions) -> tuple[float, Plan]:
    start = time.perf_counter()
    plan = make_plan(NOISE, config, options)
    return (time.perf_counter() - start) * 1e3, plan


def _empty_caches() -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("sd2rt.runtime"):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


if __name__ == "__main__":
    main()
