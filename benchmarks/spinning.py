"""Compare ways in which ONNX Runtime's threads wait between operators: step time alone, and beside busy processes.

    python -m benchmarks.spinning [--bundle BUNDLE] [--size N] [--modes NAME ...] [--rounds N] [--output]

Each way has a pipeline of its own, with all parts open, and they make images in turns. Beside "hogs", that number of
processes computes without a pause; beside a "session", another process makes images too, with threads that sleep.
Ratios are to sleeping threads, within a round.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.recording import machine, report
from benchmarks.recording.bundle import add_bundle, bundle_or_demo
from sd2rt.engines.onnxruntime import opening
from sd2rt.engines.onnxruntime.session_config import SessionKey
from sd2rt.runtime import Pipeline, Request

MODES: dict[str, dict[SessionKey, str]] = {
    "sleep": {"session.intra_op.allow_spinning": "0"},
    "spin": {},
    **{f"{us} us": {"session.intra_op.spin_duration_us": str(us)} for us in (20, 50, 100, 200, 1000)},
    **{
        f"{us} us, backoff {most}": {
            "session.intra_op.spin_duration_us": str(us),
            "session.intra_op.spin_backoff_max": str(most),
        }
        for us, most in ((30, 16), (50, 4), (50, 16), (50, 64), (200, 16), (1000, 64))
    },
}
"""Entries of the session's configuration. "spin" is ONNX Runtime's default."""

_HOG = "while True: pass"
_SESSION = """
import sys
from sd2rt.runtime import Pipeline
with Pipeline.open(sys.argv[1]) as pipe:
    print("open", flush=True)
    while True:
        pipe("another session", num_inference_steps=20)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.spinning", description=__doc__.splitlines()[0]
    )
    add_bundle(parser)
    parser.add_argument("--size", type=int, help="side of the images; default: the bundle's native size")
    parser.add_argument("--modes", nargs="+", choices=tuple(MODES), default=tuple(MODES))
    parser.add_argument("--beside", nargs="+", default=["nothing", "1 hog", "2 hogs", "1 session"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, help="engine threads; default: one per core")
    report.add_output(parser)
    options = parser.parse_args()
    if options.modes[0] != "sleep":
        parser.error("the first mode is the one of comparison: begin with sleep")
    facts = machine.facts()
    with bundle_or_demo(options.bundle) as path, ExitStack() as stack:
        pipes = {name: stack.enter_context(opened(path, name, options.threads)) for name in options.modes}
        cases = []
        for beside in options.beside:
            with busy(beside, path):
                cases += measure(pipes, beside, options)
    result = {
        "benchmark": "spinning",
        "bundle": "demo" if options.bundle is None else Path(options.bundle).name,
        "steps": options.steps,
        "rounds": options.rounds,
        "threads": options.threads,
        "cases": cases,
        "machine": facts,
        "load_average_after": machine.load_average(),
    }
    rows = [
        (
            case["beside"],
            case["mode"],
            *(f"{case['ms_per_step'][key]:.2f}" for key in ("median", "min", "max")),
            *(f"{case['ratio'][key]:.2f}" for key in ("median", "min", "max")),
            f"{case['cpu_ratio']['median']:.2f}",
        )
        for case in cases
    ]
    header = ("beside", "threads", "ms/step", "min", "max", "/ sleep", "min", "max", "CPU time / sleep")
    report.finish(result, header, rows, options.output)


@contextmanager
def opened(bundle: str, mode: str, threads: int | None) -> Iterator[Pipeline]:
    """Open a pipeline whose sessions wait in this way."""
    usual = opening.waiting
    opening.waiting = lambda: MODES[mode]
    try:
        pipeline = Pipeline.open(bundle, threads=threads)
    finally:
        opening.waiting = usual
    with pipeline:
        yield pipeline


@contextmanager
def busy(beside: str, bundle: str) -> Iterator[None]:
    """Run other processes meanwhile."""
    number, _, kind = beside.partition(" ")
    code = {"hog": _HOG, "session": _SESSION}.get(kind.removesuffix("s"), "")
    processes = [
        subprocess.Popen([sys.executable, "-c", code, bundle], stdout=subprocess.PIPE)
        for _ in range(int(number) if code else 0)
    ]
    try:
        for process in processes:
            if code == _SESSION and process.stdout is not None:
                process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(pipes: dict[str, Pipeline], beside: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time each pipeline's steps in turns; the first round warms up."""
    sides = {} if options.size is None else {"width": options.size, "height": options.size}
    wall: dict[str, list[float]] = {name: [] for name in pipes}
    cpu: dict[str, list[float]] = {name: [] for name in pipes}
    names = list(pipes)
    for turn in range(options.rounds + 1):
        # Another order in each round, so that none always follows the same one.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            request = Request(
                prompt="a lighthouse on a cliff at dusk",
                seed=1,
                num_inference_steps=options.steps,
                output_type="latent",
                **sides,
            )
            before, cpu_before = time.perf_counter(), time.process_time()
            pipes[name].generate([request])
            if turn:
                wall[name].append((time.perf_counter() - before) / options.steps * 1000)
                cpu[name].append(time.process_time() - cpu_before)
    return [
        {
            "beside": beside,
            "mode": name,
            "ms_per_step": report.summary(wall[name]),
            "ratio": report.summary(a / b for a, b in zip(wall[name], wall["sleep"], strict=True)),
            "cpu_ratio": report.summary(a / b for a, b in zip(cpu[name], cpu["sleep"], strict=True)),
        }
        for name in pipes
    ]


if __name__ == "__main__":
    main()
