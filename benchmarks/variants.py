"""Every published checkpoint in full size on a CPU: its bundle built, and one step of it run.

    python -m benchmarks.variants [--variants 2.0-depth x4-upscaler ...] [--output]
    python -m benchmarks.variants --small         the same on tiny networks, in minutes

Random weights take the time and the memory of trained ones. Every stage is a process of its own, through the
command line where there is one. A bundle is kept until the next one is built, so that what the two share is seen.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.recording import machine, process, report
from benchmarks.recording.process import sd2rt
from benchmarks.recording.published import add_published, published, write_command
from benchmarks.recording.work_folder import add_workdir, work_folder
from sd2rt.engines.bundle.model_kinds import KINDS, TASKS
from sd2rt.export.checkpoints.variants import PublishedCheckpoint

FULL_BYTES = 20_000_000_000
SEED = 1
PROMPT = "a photograph of an astronaut riding a horse"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.variants", description=__doc__.splitlines()[0]
    )
    add_published(parser)
    add_workdir(parser)
    report.add_output(parser)
    options = parser.parse_args()
    with work_folder("variants", options.workdir, 0 if options.small else FULL_BYTES) as folder:
        result = _measure(published(options), options.small, folder)
    report.finish(result, ("", *_COLUMNS), _rows(result), options.output)


def _measure(variants: list[PublishedCheckpoint], small: bool, folder: Path) -> dict[str, Any]:
    facts, env = machine.facts(), process.environment(folder)
    found: dict[str, Any] = {}
    last: Path | None = None
    for row in variants:
        checkpoint, bundle = folder / "checkpoint", folder / row.name
        stages: dict[str, Any] = {}

        def stage(
            name: str, command: list[str], variant: str = row.name, stages: dict[str, Any] = stages
        ) -> str:
            measured = process.measure_stage(f"{variant}: {name}", command, env)
            stages[name] = measured.facts()
            return measured.stdout

        stage("write", write_command(row, checkpoint, small=small))
        stage("build", sd2rt("build", checkpoint, "-o", bundle, "--variant", row.name))
        shutil.rmtree(checkpoint)
        manifest = json.loads((bundle / "bundle.json").read_text())
        shared = json.loads(stage("inspect", sd2rt("inspect", bundle, "--json")))["shared_bytes"]
        picture = _picture(row, manifest, folder)
        done = json.loads(stage("one step", sd2rt("run", bundle, PROMPT, "--json", *picture)))
        assert Image.open(done["path"]).size == (done["width"], done["height"])
        found[row.name] = {
            "kind": row.kind,
            "parameters": {name: part["parameters"] for name, part in manifest["parts"].items()},
            "bytes": sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()),
            "shared_bytes": shared,
            "image": [done["width"], done["height"]],
            "task": done["task"],
            "image_seconds": done["batch_seconds"],
            "stages": stages,
        }
        if last is not None:
            shutil.rmtree(last)
        last = bundle
    return {
        "benchmark": "variants-cpu-small" if small else "variants-cpu",
        "steps": 1,
        "variants": found,
        "machine": facts,
        "load_average_after": machine.load_average(),
    }


def _picture(row: PublishedCheckpoint, manifest: dict[str, Any], folder: Path) -> list[str]:
    """The command line's options for one step of the variant's task, on a picture of its native size."""
    assert row.kind is not None
    task = TASKS[next(iter(KINDS[row.kind].tasks))]
    width, height = manifest["native_sizes"][0]
    if task.name == "upscaling":
        width, height = (side // manifest["latents"]["vae_factor"] for side in (width, height))
    pixels = np.random.default_rng(SEED).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    Image.fromarray(pixels[..., 0]).save(folder / "mask.png")
    options = ["--steps", "1", "--seed", str(SEED), "-o", str(folder / f"{row.name}.png")]
    options += ["--image", str(folder / "image.png")] if "image" in task.required else []
    options += ["--mask", str(folder / "mask.png")] if "mask_image" in task.required else []
    # The whole way in the one step.
    options += ["--strength", "1"] if "strength" in task.optional else []
    # Guided, as every kind but turbo is: the times are those of two rows.
    return options


_COLUMNS = (
    "parameters, M",
    "bundle, GB",
    "shared, GB",
    "build, s",
    "build, GB",
    "run, s",
    "run, GB",
    "image, s",
)


def _rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, found in result["variants"].items():
        build, run = found["stages"]["build"], found["stages"]["one step"]
        values = (
            sum(found["parameters"].values()) / 1e6,
            found["bytes"] / 1e9,
            found["shared_bytes"] / 1e9,
            build["seconds"],
            build["peak_rss_bytes"] / 1e9,
            run["seconds"],
            run["peak_rss_bytes"] / 1e9,
            found["image_seconds"],
        )
        rows.append((name, *(f"{value:.2f}" for value in values)))
    return rows


if __name__ == "__main__":
    main()
