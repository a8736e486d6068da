"""Render a contact sheet of images from the demo's checkpoints.

python -m benchmarks.demo.sheet --output FILE.png [--bundles DIR]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.demo import prompts, world
from benchmarks.demo.checkpoints import CHECKPOINTS
from benchmarks.demo.layout import Cell, Section, lay_out
from benchmarks.demo.painter import Order, Picture, Settings
from benchmarks.demo.sd2rt_painter import Sd2rtPainter

TEXTS = (
    "a large red circle in the center on a white background",
    "a small blue square left of a large yellow circle on a black background",
    "a medium green triangle above a medium pink cross on a light gradient background",
    "a large purple cross in the bottom right corner on a gray background",
    "a large orange triangle right of a small cyan square on a dark gradient background",
    "a medium cyan circle below a large blue triangle on a white background",
    "a large green cross on the left on a black background",
    "a medium pink circle in the top left corner on a light gradient background",
)
V_TEXTS = (
    "a large yellow triangle in the center on a dark gradient background",
    "a medium red cross left of a medium red circle on a white background",
    "a large blue square above a small orange circle on a gray background",
    "a small purple triangle at the top on a light gradient background",
    "a large pink circle in the center on a black background",
    "a large cyan cross below a medium yellow square on a dark gradient background",
    "a medium green circle right of a large purple circle on a white background",
    "a large red square in the bottom left corner on a gray background",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo.sheet", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", "-o", type=Path, required=True, metavar="FILE.png")
    parser.add_argument(
        "--bundles", type=Path, metavar="DIR", help="folder of bundles; default: find by name"
    )
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--sampler", help="default: the checkpoint's sampler")
    parser.add_argument("--threads", type=int, help="default: one per core")
    parser.add_argument("--seed", type=int, default=2)
    options = parser.parse_args()
    start = time.perf_counter()
    sections = [make(options) for make in (_texts, _v_texts, _inpainting, _depth, _upscaling)]
    sheet = lay_out("What the demo draws", f"{options.steps} steps, 128x128 pixels, on a CPU", sections)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.output)
    print(f"wrote {options.output}, models took {time.perf_counter() - start:.1f} s", file=sys.stderr)


def _open(kind: str, options: argparse.Namespace, batch: int) -> Sd2rtPainter:
    name, _ = CHECKPOINTS[kind]
    bundle = name if options.bundles is None else str(options.bundles / name)
    return Sd2rtPainter(bundle, threads=options.threads, batch=batch)


def _settings(
    options: argparse.Namespace, strength: float | None = None, noise_level: int | None = None
) -> Settings:
    guidance = options.guidance if noise_level is None else 1.0
    return Settings(options.steps, guidance, options.sampler, strength, noise_level)


def _texts(options: argparse.Namespace) -> Section:
    return Section("Text to image", _from_texts(options, "base", TEXTS))


def _v_texts(options: argparse.Namespace) -> Section:
    return Section("Text to image, v prediction", _from_texts(options, "v", V_TEXTS))


def _from_texts(options: argparse.Namespace, kind: str, texts: Sequence[str]) -> list[Cell | None]:
    orders = [Order(text, options.seed + number) for number, text in enumerate(texts)]
    with _open(kind, options, len(orders)) as painter:
        images = painter.paint(orders, _settings(options))
    return [Cell(picture, text) for text, picture in zip(texts, images, strict=True)]


def _inpainting(options: argparse.Namespace) -> Section:
    """Input, mask and result of the first two cases of the scored set."""
    cases = prompts.inpainting_cases()[:2]
    originals = [world.picture(case.scene) for case in cases]
    masks = [prompts.mask_of(case.box) for case in cases]
    orders = [
        Order(case.spec.prompt, options.seed, image=original, mask=mask)
        for case, original, mask in zip(cases, originals, masks, strict=True)
    ]
    with _open("inpainting", options, len(orders)) as painter:
        images = painter.paint(orders, _settings(options, strength=1.0))
    cells: list[Cell | None] = []
    for case, original, mask, picture in zip(cases, originals, masks, images, strict=True):
        cells += [
            *([None] if cells else []),
            Cell(original, "input"),
            Cell(_masked(original, mask), "area to repaint"),
            Cell(picture, case.spec.prompt),
        ]
    return Section("Inpainting", cells)


def _depth(options: argparse.Namespace) -> Section:
    """Input, its estimated depth, and the result in other colours."""
    cases = prompts.depth_cases()[1:3]
    originals = [world.picture(case.scene) for case in cases]
    orders = [
        Order(case.spec.prompt, options.seed, image=original)
        for case, original in zip(cases, originals, strict=True)
    ]
    with _open("depth", options, len(orders)) as painter:
        depths = [painter.pipeline.depth(Image.fromarray(original)) for original in originals]
        images = painter.paint(orders, _settings(options, strength=1.0))
    cells: list[Cell | None] = []
    for case, original, depth, picture in zip(cases, originals, depths, images, strict=True):
        cells += [
            *([None] if cells else []),
            Cell(original, "input"),
            Cell(_gray(depth), "estimated depth"),
            Cell(picture, case.spec.prompt),
        ]
    return Section("Depth", cells)


def _upscaling(options: argparse.Namespace) -> Section:
    """A 32x32 input enlarged by nearest neighbour, by bicubic interpolation and by the upscaler."""
    cases = prompts.upscaling_cases()[:2]
    low = [prompts.low_resolution(world.picture(case.scene)) for case in cases]
    texts = [world.describe(case.scene) for case in cases]
    orders = [Order(text, options.seed, image=image) for text, image in zip(texts, low, strict=True)]
    with _open("upscaler", options, len(orders)) as painter:
        images = painter.paint(orders, _settings(options, noise_level=20))
    cells: list[Cell | None] = []
    for image, text, picture in zip(low, texts, images, strict=True):
        cells += [
            *([None] if cells else []),
            Cell(_enlarged(image, Image.Resampling.NEAREST), "input, 32x32"),
            Cell(_enlarged(image, Image.Resampling.BICUBIC), "bicubic, for comparison"),
            Cell(picture, text),
        ]
    return Section("Upscaling, four times", cells)


def _masked(picture: Picture, mask: NDArray[np.bool_]) -> Picture:
    """Fill the masked area with stripes of two greys, which do not occur in the world."""
    rows, columns = np.indices(mask.shape)
    stripes = np.where((rows + columns) // 6 % 2, 215, 180)
    return np.where(mask[..., None], stripes[..., None], picture).astype(np.uint8)


def _gray(depth: NDArray[np.float32]) -> Picture:
    """Render a depth map at image size, near as light."""
    low, high = depth.min(), depth.max()
    levels = (255 * (depth - low) / max(high - low, 1e-6)).astype(np.uint8)
    image = Image.fromarray(levels).resize((world.SIDE, world.SIDE), Image.Resampling.BICUBIC)
    return np.asarray(image.convert("RGB"))


def _enlarged(picture: Picture, resample: Image.Resampling) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((world.SIDE, world.SIDE), resample))


if __name__ == "__main__":
    main()
