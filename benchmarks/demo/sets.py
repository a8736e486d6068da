"""The scored sets, one function each: generate images, analyse them, and judge case by case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from benchmarks.demo import prompts, reader, world
from benchmarks.demo.painter import Order, Painter, Picture, Settings
from benchmarks.demo.prompt_spec import PromptSpec
from benchmarks.demo.tally import Tally
from benchmarks.demo.verdict import judge

CaseImages = tuple[Picture, ...]
"""The images of one case, for display or saving."""

NEAR = 8
"""Width in pixels of the border around a mask that may change too."""
STAYS = 2.0
"""Largest mean change outside the mask, in levels, beyond that of the autoencoder alone."""
OVERLAP = 0.6


@dataclass(frozen=True, slots=True)
class Set:
    """A set's cases, and the function that generates and judges a batch of them."""

    cases: Callable[[], Sequence[Any]]
    judge: Callable[[Painter, Sequence[Any], Settings, Tally], Iterator[CaseImages]]


def _text(
    painter: Painter, cases: Sequence[prompts.TextCase], settings: Settings, tally: Tally
) -> Iterator[CaseImages]:
    orders = [Order(case.spec.prompt, case.seed) for case in cases]
    for case, picture in zip(cases, painter.paint(orders, settings), strict=True):
        tally.add(judge(reader.read(picture), case.spec))
        yield (picture,)


def _negative(
    painter: Painter, cases: Sequence[prompts.NegativeCase], settings: Settings, tally: Tally
) -> Iterator[CaseImages]:
    """Correct: the open detail differs from what the same seed gave without the negative prompt."""
    plain = painter.paint([Order(case.spec.prompt, case.seed) for case in cases], settings)
    shown = [_shown(picture, case) for case, picture in zip(cases, plain, strict=True)]
    orders = [
        Order(case.spec.prompt, case.seed, negative=value)
        for case, value in zip(cases, shown, strict=True)
        if value is not None
    ]
    second_images = iter(painter.paint(orders, settings) if orders else ())
    for case, first, value in zip(cases, plain, shown, strict=True):
        if value is None:
            # No thing was recognised, so there is no negative prompt.
            tally.add({"negative": [False], "readable": [False]})
            yield (first,)
            continue
        second = next(second_images)
        new_value = _shown(second, case)
        tally.add({"negative": [new_value is not None and new_value != value], "readable": [True]})
        tally.add({f"negative, {case.open}": [new_value is not None and new_value != value]})
        tally.add({"the rest kept": judge(reader.read(second), case.spec)["all"]})
        yield first, second


def _shown(picture: Picture, case: prompts.NegativeCase) -> str | None:
    """Value of the open detail in the largest thing of an image; None without one."""
    things = reader.read(picture).things
    return getattr(things[0], case.open) if things else None


def _inpainting(
    painter: Painter, cases: Sequence[prompts.InpaintingCase], settings: Settings, tally: Tally
) -> Iterator[CaseImages]:
    """Correct: the new thing is in the mask with its shape and colour, and the rest is unchanged."""
    originals = [world.picture(case.scene) for case in cases]
    masks = [prompts.mask_of(case.box) for case in cases]
    orders = [
        Order(case.spec.prompt, case.seed, image=original, mask=mask)
        for case, original, mask in zip(cases, originals, masks, strict=True)
    ]
    images = painter.paint(orders, settings)
    for case, original, mask, picture in zip(cases, originals, masks, images, strict=True):
        outside = ~ndimage.binary_dilation(mask, np.ones((3, 3), np.bool_), iterations=NEAR)
        change = _difference(picture, original, outside)
        trip = _difference(painter.round_trip(original), original, outside)
        inside = [thing for thing in reader.read(picture).things if _within(thing.center, case.box)]
        verdict = judge(reader.Reading(tuple(inside), 0, 0), PromptSpec((case.new,)))
        shows = len(inside) == 1 and verdict["shape"][0] and verdict["color"][0]
        stays = bool(change <= trip + STAYS)
        tally.add({"inpainting": [shows and stays], "shows it": [shows], "the rest stays": [stays]})
        tally.add({name: verdict[name] for name in ("shape", "color", "size")})
        tally.measure("outside, levels", change)
        tally.measure("round trip there, levels", trip)
        yield original, picture


def _within(center: tuple[float, float], box: tuple[int, int, int, int]) -> bool:
    left, top, right, bottom = box
    return left <= center[0] < right and top <= center[1] < bottom


def _difference(picture: Picture, other: Picture, where: NDArray[np.bool_]) -> float:
    """Mean absolute difference, in levels."""
    return float(abs(picture.astype(np.float32) - other)[where].mean())


def _depth(
    painter: Painter, cases: Sequence[prompts.DepthCase], settings: Settings, tally: Tally
) -> Iterator[CaseImages]:
    """Correct: the things are where the original's are, in the requested colours."""
    originals = [world.picture(case.scene) for case in cases]
    orders = [
        Order(case.spec.prompt, case.seed, image=original)
        for case, original in zip(cases, originals, strict=True)
    ]
    for case, original, picture in zip(cases, originals, painter.paint(orders, settings), strict=True):
        verdict = judge(reader.read(picture), case.spec)
        true = np.max([world.cover(thing) for thing in case.scene.things], axis=0) >= 0.5
        detected = reader.thing_mask(picture)
        overlap = int(np.count_nonzero(true & detected)) / int(np.count_nonzero(true | detected))
        layout = bool(overlap > OVERLAP)
        tally.add({"depth": [layout and all(verdict["color"])], "layout": [layout]})
        tally.add({"color": verdict["color"]})
        tally.measure("overlap", overlap)
        yield original, picture


def _upscaler(
    painter: Painter, cases: Sequence[prompts.UpscalingCase], settings: Settings, tally: Tally
) -> Iterator[CaseImages]:
    """Correct: the image is closer to the true one than bicubic interpolation."""
    truths = [world.picture(case.scene) for case in cases]
    low = [prompts.low_resolution(truth) for truth in truths]
    orders = [
        Order(world.describe(case.scene), case.seed, image=image)
        for case, image in zip(cases, low, strict=True)
    ]
    for truth, image, picture in zip(truths, low, painter.paint(orders, settings), strict=True):
        size = (world.SIDE, world.SIDE)
        plain = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        ours, theirs = psnr(picture, truth), psnr(plain, truth)
        tally.add({"upscaler": [ours > theirs]})
        tally.measure("PSNR, dB", ours)
        tally.measure("PSNR of bicubic, dB", theirs)
        yield image, picture


def psnr(picture: Picture, truth: Picture) -> float:
    """Peak signal-to-noise ratio of two images, in dB; 100 if they are equal."""
    error = float(np.square(picture.astype(np.float64) - truth).mean())
    return 100.0 if error == 0 else float(10 * np.log10(255**2 / error))


SETS: dict[str, Set] = {
    "text": Set(prompts.text_cases, _text),
    "negative": Set(prompts.negative_cases, _negative),
    "inpainting": Set(prompts.inpainting_cases, _inpainting),
    "depth": Set(prompts.depth_cases, _depth),
    "upscaler": Set(prompts.upscaling_cases, _upscaler),
}


def run(
    name: str,
    painter: Painter,
    settings: Settings,
    tally: Tally,
    *,
    batch: int,
    limit: int | None = None,
    on_case: Callable[[int, int, CaseImages], None] = lambda index, count, pictures: None,
) -> None:
    """Generate a set, ``batch`` cases at a time, and judge it into ``tally``, which is valid after any case.

    ``on_case`` is called after each case with its index, the number of cases, and its images.
    """
    cases = SETS[name].cases()[:limit]
    index = 0
    for start in range(0, len(cases), batch):
        for pictures in SETS[name].judge(painter, cases[start : start + batch], settings, tally):
            on_case(index, len(cases), pictures)
            index += 1
