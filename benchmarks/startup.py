"""Time and memory of `sd2rt run` on the demo, from process start to PNG, with a breakdown by phase.

    python -m benchmarks.startup [--bundle BUNDLE] [--steps 50] [--repetitions 7]

Total times are of the plain command. Phase times come from separate, interleaved runs in which the command's
functions are wrapped with timers.
"""

from __future__ import annotations

import argparse
import builtins
import functools
import importlib
import json
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from benchmarks.recording import machine, process, report
from benchmarks.recording.bundle import add_bundle, build_demo

SECONDS_BOUND = 1.5
PEAK_RSS_BOUND = 300_000_000
P = ParamSpec("P")
R = TypeVar("R")

PROMPT = "a lighthouse on a cliff, oil painting"

PHASES = (
    ("verify", "sd2rt.runtime.pipeline.pipeline", "open_bundle"),
    ("load engines", "sd2rt.runtime.pipeline.pipeline", "Pipeline.open"),
    ("tokenizer", "sd2rt.runtime.prompts.encoder", "Tokenizer"),
    ("text", "sd2rt.runtime.prompts.encoder", "TextEncoder.__call__"),
    ("plan and noise", "sd2rt.runtime.pipeline.run", "Run.__init__"),
    ("steps", "sd2rt.runtime.denoising.batch", "Batch.step"),
    ("decode", "sd2rt.runtime.pipeline.run", "Run.outcomes"),
    ("save", "sd2rt.runtime.metadata.save", "ImageTarget.save"),
)
"""(phase, module, function). A phase excludes time in the phases nested in it; imports are a phase too."""
ORDER = ("interpreter", "imports", "command line", *(name for name, _, _ in PHASES), "exit")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__.splitlines()[0])
    add_bundle(parser)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repetitions", type=int, default=7)
    report.add_output(parser)
    options = parser.parse_args()
    facts = machine.facts()
    with tempfile.TemporaryDirectory(prefix="sd2rt-startup-") as name:
        scratch = Path(name)
        env = process.environment(scratch)
        bundle = build_demo(scratch) if options.bundle is None else options.bundle
        command = ["run", str(bundle), PROMPT, "--steps", str(options.steps), "--seed", "1", "--quiet"]
        plain, phases = [], []
        for repetition in range(options.repetitions + 1):
            whole = process.measure(process.sd2rt(*command, "-o", scratch / "a.png"), env)
            split = _traced([*command, "-o", str(scratch / "b.png")], env)
            if repetition:  # the first warms the page cache, receipts and compiled modules
                plain.append(whole)
                phases.append(split)
    seconds = report.summary(run.seconds for run in plain)
    peak = report.summary((run.peak_rss_bytes for run in plain), 0)
    result = {
        "benchmark": "startup",
        "steps": options.steps,
        "seconds": seconds,
        "cpu_seconds": report.summary(run.cpu_seconds for run in plain),
        "others_cpu_seconds": report.summary(run.others_cpu_seconds for run in plain),
        "peak_rss_bytes": peak,
        "peak_anonymous_bytes": report.summary((run.peak_anonymous_bytes for run in plain), 0),
        "bounds": {
            "seconds": {"bound": SECONDS_BOUND, "holds": seconds["median"] <= SECONDS_BOUND},
            "peak_rss_bytes": {"bound": PEAK_RSS_BOUND, "holds": peak["max"] <= PEAK_RSS_BOUND},
        },
        "phases_seconds": {name: report.summary(split.get(name, 0.0) for split in phases) for name in ORDER},
        "machine": facts,
        "load_average_after": machine.load_average(),
    }
    rows = [("process start to PNG, s", *_cells(seconds, 1.0, 2), f"<= {SECONDS_BOUND}")]
    rows += [("its CPU time, s", *_cells(result["cpu_seconds"], 1.0, 2), "")]
    rows += [("others' CPU time, s", *_cells(result["others_cpu_seconds"], 1.0, 2), "")]
    rows += [("peak memory, MB", *_cells(peak, 1e-6, 0), f"<= {PEAK_RSS_BOUND // 10**6}")]
    rows += [(f"{name}, ms", *_cells(result["phases_seconds"][name], 1e3, 0), "") for name in ORDER]
    report.finish(result, ("", "median", "min", "max", "bound"), rows, options.output)


def _cells(values: dict[str, float], scale: float, digits: int) -> list[str]:
    return [f"{values[name] * scale:.{digits}f}" for name in ("median", "min", "max")]


def _traced(arguments: list[str], env: dict[str, str]) -> dict[str, float]:
    """Run the command with its functions timed; return the seconds of each phase."""
    code = "from benchmarks.startup import trace; trace()"
    started = time.perf_counter_ns()
    run = process.measure([sys.executable, "-c", code, str(started), *arguments], env)
    end = started + int(run.seconds * 1e9)
    phases: dict[str, int] = json.loads(run.stdout.splitlines()[-1])
    phases["exit"] = end - phases.pop("end")
    return {name: taken / 1e9 for name, taken in phases.items()}


class _Clock:
    """Time of one thread by phase, excluding nested phases."""

    def __init__(self, started: int) -> None:
        self.taken: dict[str, int] = defaultdict(int)
        self._phases = ["command line"]
        self._thread = threading.get_ident()
        self._since = time.perf_counter_ns()
        self.taken["interpreter"] = self._since - started

    def enter(self, phase: str) -> None:
        self._turn()
        self._phases.append(phase)

    def leave(self) -> None:
        self._turn()
        self._phases.pop()

    def _turn(self) -> None:
        now = time.perf_counter_ns()
        self.taken[self._phases[-1]] += now - self._since
        self._since = now

    def timed(self, phase: str, function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            # The main thread's waits already cover other threads, and an outer import covers nested ones.
            if threading.get_ident() != self._thread or self._phases[-1] == phase:
                return function(*args, **kwargs)
            self.enter(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return timed


def trace() -> None:
    """Run the command with its functions timed; the entry point of a traced process.

    ``sys.argv`` holds the parent's clock at process start, then the command's arguments. The phases are printed to
    standard output.
    """
    clock = _Clock(int(sys.argv[1]))
    builtins.__import__ = clock.timed("imports", builtins.__import__)
    importlib.import_module = clock.timed("imports", importlib.import_module)
    for phase, module, path in PHASES:
        owner: Any = importlib.import_module(module)
        *outer, name = path.split(".")
        for step in outer:
            owner = getattr(owner, step)
        function = vars(owner).get(name)
        if function is None:
            sys.exit(f"{module} has no {path}: update the phase {phase!r} in PHASES")
        if isinstance(function, classmethod):
            setattr(owner, name, classmethod(clock.timed(phase, function.__func__)))
        else:
            setattr(owner, name, clock.timed(phase, function))
    cli: Any = importlib.import_module("sd2rt.runtime.cli.main")
    code = cli.main(sys.argv[2:])
    clock.leave()
    print(json.dumps(clock.taken | {"end": time.perf_counter_ns()}))
    sys.exit(code)


if __name__ == "__main__":
    main()
