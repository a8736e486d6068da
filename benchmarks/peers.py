"""One bundle and the checkpoint it was made from: the same images by sd2rt and by diffusers, with their times.

    python -m benchmarks.peers --bundle BUNDLE --checkpoint FOLDER --sides sd2rt diffusers --pairs 3

With both sides, they take turns in one process, so that what else the machine does falls on both. With one
side, the process holds nothing else, and its peak memory is that side's. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]  # [H, W, 3] in [0, 1]
Side = Callable[[int], tuple[Image, list[float]]]
"""Makes the image in this many steps; the clock at the end of every denoiser call comes with it."""


@dataclass(slots=True)
class Taken:
    """What one side's images took, in seconds."""

    steps: list[float] = field(default_factory=list)
    """Median over an image's denoiser calls, the first of which is left out: it follows the text encoder."""
    images: list[float] = field(default_factory=list)
    """From the prompt to the pixels."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="a diffusers folder")
    parser.add_argument("--sides", nargs="+", choices=("sd2rt", "diffusers"), required=True)
    parser.add_argument("--prompt", default="a photograph of an astronaut riding a horse")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--png", type=Path, help="an image to compare sd2rt's with, byte by byte")
    options = parser.parse_args()
    openers = {"sd2rt": _open_sd2rt, "diffusers": _open_diffusers}
    opened = {name: openers[name](options) for name in options.sides}
    taken = {name: Taken() for name in opened}
    images: dict[str, Image] = {}
    for side in opened.values():
        # Buffers and kernels are made once, which is no part of a step.
        side(1)
    for _ in range(options.pairs):
        for name, side in opened.items():
            start = time.perf_counter()
            images[name], clock = side(options.steps)
            taken[name].images.append(time.perf_counter() - start)
            taken[name].steps.append(statistics.median(np.diff(clock).tolist()))
    result: dict[str, Any] = {
        "sides": {
            name: {"seconds_per_step": found.steps, "seconds_per_image": found.images}
            for name, found in taken.items()
        }
    }
    if len(images) == 2:
        result["difference"] = difference(images["sd2rt"], images["diffusers"])
    if options.png is not None:
        from PIL import Image as Pillow

        result["cli_image_equal"] = bool(
            np.array_equal(np.asarray(Pillow.open(options.png)), _eight(images["sd2rt"]))
        )
    print(json.dumps(result))


def difference(ours: Image, theirs: Image) -> dict[str, Any]:
    """How far two images are apart, on the scale of 0 to 255."""
    error = (ours.astype(np.float64) - theirs) * 255
    square = float(np.mean(error**2))
    pixels = np.abs(_eight(ours).astype(int) - _eight(theirs))
    return {
        "max_pixel": int(pixels.max()),
        "pixels_that_differ": float((pixels > 0).mean()),
        "max_before_rounding": float(np.abs(error).max()),
        "psnr_db": None if square == 0 else float(10 * np.log10(255**2 / square)),
        "pixel_std": float(theirs.std() * 255),
    }


def _eight(image: Image) -> NDArray[np.uint8]:
    return (image * 255).round().astype(np.uint8)


def _open_sd2rt(options: argparse.Namespace) -> Side:
    from sd2rt.runtime import Pipeline

    pipeline = Pipeline.open(options.bundle)

    def make(steps: int) -> tuple[Image, list[float]]:
        with pipeline.stream(
            options.prompt, num_inference_steps=steps, seed=options.seed, output_type="np"
        ) as run:
            clock = [time.perf_counter() for _ in run]
            images = run.result()[0].images
        return np.asarray(images[0]), clock

    return make


def _open_diffusers(options: argparse.Namespace) -> Side:
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        options.checkpoint, torch_dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)

    def make(steps: int) -> tuple[Image, list[float]]:
        clock: list[float] = []

        def stamp(pipe: object, step: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
            clock.append(time.perf_counter())
            return {}

        images = pipeline(
            options.prompt,
            num_inference_steps=steps,
            generator=torch.Generator("cpu").manual_seed(options.seed),
            output_type="np",
            callback_on_step_end=stamp,
        ).images
        return np.asarray(images[0]), clock

    return make


if __name__ == "__main__":
    main()
