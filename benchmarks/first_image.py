"""Time from process start to first PNG: `sd2rt run` and a minimal diffusers script, alternating on the demo.

    python -m benchmarks.first_image [--steps 4] [--pairs 7] [--warmup 1] [--output]
    python -m benchmarks.first_image --checkpoint FOLDER --bundle BUNDLE      another checkpoint, and its bundle

Both commands run at their defaults, as a user would type them. The first turn of each warms the page cache, the
verification receipts and the compiled modules, and is not counted. The images are compared.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.peers import site
from benchmarks.recording import machine, process, report
from benchmarks.recording.process import Measured

SECONDS_BOUND = 0.25
PEAK_RSS_BOUND = 0.4
PIXEL_BOUND = 2
PROMPT = "a lighthouse on a cliff, oil painting"
SEED = 1
SIDES = ("sd2rt", "diffusers")
DIFFUSERS = """
import sys
import torch
from diffusers import StableDiffusionPipeline
checkpoint, prompt, steps, seed, path = sys.argv[1:]
pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, local_files_only=True)
generator = torch.Generator("cpu").manual_seed(int(seed))
pipeline(prompt, num_inference_steps=int(steps), generator=generator).images[0].save(path)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_image", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--checkpoint", type=Path, help="a diffusers folder; default: the demo's")
    parser.add_argument("--bundle", type=Path, help="the bundle of that checkpoint; default: build it")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument(
        "--warmup", type=int, default=1, help="uncounted turns of each before the measured ones"
    )
    report.add_output(parser)
    options = parser.parse_args()
    if options.pairs < 1 or options.steps < 1 or options.warmup < 0:
        sys.exit("--pairs and --steps must be at least 1, --warmup at least 0")
    if options.bundle is not None and options.checkpoint is None:
        sys.exit("--bundle requires --checkpoint")
    with tempfile.TemporaryDirectory(prefix="sd2rt-first-image-") as name:
        result = _measure(options, Path(name))
    report.finish(result, ("", "median", "min", "max", "bound"), _rows(result), options.output)


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    facts, env = machine.facts(), process.environment(folder)
    site_files = site.settle(folder, "demo", env, checkpoint=options.checkpoint, bundle=options.bundle)
    pictures = {side: folder / f"{side}.png" for side in SIDES}
    arguments = [PROMPT, str(options.steps), str(SEED)]
    commands = {
        "sd2rt": process.sd2rt(
            "run", site_files.bundle, PROMPT, "--steps", arguments[1], "--seed", arguments[2],
            "--quiet", "-o", pictures["sd2rt"],
        ),
        "diffusers": [
            sys.executable, "-c", DIFFUSERS, str(site_files.checkpoint), *arguments, str(pictures["diffusers"]),
        ],
    }  # fmt: skip
    runs: dict[str, list[Measured]] = {side: [] for side in SIDES}
    for turn in range(options.warmup + options.pairs):
        for side, command in commands.items():
            pictures[side].unlink(missing_ok=True)
            measured = process.measure(command, env)
            if turn >= options.warmup:
                runs[side].append(measured)
    max_difference = _largest_difference(*pictures.values())
    ratios = {
        "seconds": _ratio([run.seconds for run in runs["sd2rt"]], [run.seconds for run in runs["diffusers"]]),
        "peak_rss_bytes": _ratio(
            [run.peak_rss_bytes for run in runs["sd2rt"]], [run.peak_rss_bytes for run in runs["diffusers"]]
        ),
    }
    return {
        "benchmark": "first-image",
        "checkpoint": "demo" if options.checkpoint is None else "given",
        "steps": options.steps,
        "pairs": options.pairs,
        "warmup": options.warmup,
        "cores": len(os.sched_getaffinity(0)),
        **{side: _spread(measurements) for side, measurements in runs.items()},
        "ratios": ratios,
        "max_pixel": max_difference,
        "bounds": {
            "seconds": {"bound": SECONDS_BOUND, "holds": ratios["seconds"]["median"] <= SECONDS_BOUND},
            "peak_rss_bytes": {
                "bound": PEAK_RSS_BOUND,
                "holds": ratios["peak_rss_bytes"]["median"] <= PEAK_RSS_BOUND,
            },
            "max_pixel": {"bound": PIXEL_BOUND, "holds": max_difference <= PIXEL_BOUND},
        },
        "machine": facts,
        "load_average_after": machine.load_average(),
    }


def _spread(runs: Sequence[Measured]) -> dict[str, Any]:
    return {
        "seconds": report.summary(run.seconds for run in runs),
        "cpu_seconds": report.summary(run.cpu_seconds for run in runs),
        "others_cpu_seconds": report.summary(run.others_cpu_seconds for run in runs),
        "peak_rss_bytes": report.summary((run.peak_rss_bytes for run in runs), 0),
        "peak_anonymous_bytes": report.summary((run.peak_anonymous_bytes for run in runs), 0),
    }


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Ratios within each turn, so that drift of the machine between turns cancels."""
    return report.summary(our / their for our, their in zip(ours, theirs, strict=True))


def _largest_difference(ours: Path, theirs: Path) -> int:
    """Largest pixel difference of two images of equal size, on the scale of 0 to 255."""
    first, second = (np.asarray(Image.open(path), np.int16) for path in (ours, theirs))
    return int(np.abs(first - second).max())


def _rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for side in SIDES:
        rows.append((f"{side}, process start to PNG, s", *_cells(result[side]["seconds"], 1.0), ""))
        rows.append((f"{side}, peak memory, MB", *_cells(result[side]["peak_rss_bytes"], 1e-6), ""))
    for name, label in (("seconds", "time"), ("peak_rss_bytes", "memory")):
        bound = result["bounds"][name]["bound"]
        rows.append((f"sd2rt / diffusers, {label}", *_cells(result["ratios"][name], 1.0), f"<= {bound}"))
    rows.append(("largest pixel difference of 255", str(result["max_pixel"]), "", "", f"<= {PIXEL_BOUND}"))
    return rows


def _cells(values: dict[str, float], scale: float) -> list[str]:
    return [f"{values[name] * scale:.3f}" for name in ("median", "min", "max")]


if __name__ == "__main__":
    main()
