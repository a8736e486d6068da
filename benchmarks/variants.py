"""Build every published checkpoint in full size on a CPU, and run one step of each.

    python -m benchmarks.variants [--variants 2.0-depth x4-upscaler ...] [--output]
    python -m benchmarks.variants --small         tiny networks, in minutes

Random weights cost the same time and memory as trained ones. Every stage runs in a separate process, through the
command line where one exists. A bundle is kept until the next one is built, to measure how much the two share.
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
    results: dict[str, Any] = {}
    previous: Path | None = None
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
        task_options = _task_options(row, manifest, folder)
        image = json.loads(stage("one step", sd2rt("run", bundle, PROMPT, "--json", *task_options)))
        assert Image.open(image["path"]).size == (image["width"], image["height"])
        results[row.name] = {
            "kind": row.kind,
            "parameters": {name: part["parameters"] for name, part in manifest["parts"].items()},
            "bytes": sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()),
            "shared_bytes": shared,
            "image": [image["width"], image["height"]],
            "task": image["task"],
            "image_seconds": image["batch_seconds"],
            "stages": stages,
        }
        if previous is not None:
            shutil.rmtree(previous)
        previous = bundle
    return {
        "benchmark": "variants-cpu-small" if small else "variants-cpu",
        "steps": 1,
        "variants": results,
        "machine": facts,
        "load_average_after": machine.load_average(),
    }


def _task_options(row: PublishedCheckpoint, manifest: dict[str, Any], folder: Path) -> list[str]:
    """Command-line options for one step of the variant's task, on an image of its native size."""
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
    # From pure noise, so that the single step does a full denoising.
    options += ["--strength", "1"] if "strength" in task.optional else []
    # The default guidance applies: two rows per step, except for turbo.
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
    for name, variant in result["variants"].items():
        build, run = variant["stages"]["build"], variant["stages"]["one step"]
        values = (
            sum(variant["parameters"].values()) / 1e6,
            variant["bytes"] / 1e9,
            variant["shared_bytes"] / 1e9,
            build["seconds"],
            build["peak_rss_bytes"] / 1e9,
            run["seconds"],
            run["peak_rss_bytes"] / 1e9,
            variant["image_seconds"],
        )
        rows.append((name, *(f"{value:.2f}" for value in values)))
    return rows


if __name__ == "__main__":
    main()
