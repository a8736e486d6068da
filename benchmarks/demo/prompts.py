"""Fixed sets that the demo checkpoints are scored on: prompts, images and masks, generated from seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.demo import world
from benchmarks.demo.prompt_spec import Detail, PromptSpec, ThingSpec, spec_of

T = TypeVar("T")

TEXTS, NEGATIVES, INPAINTINGS, DEPTHS, UPSCALINGS = 240, 50, 50, 40, 40
_SEED = 7_000
"""Base seed; each set adds its own number."""
_LEFT_OUT = 0.15
"""Share of text prompts with one detail left out."""
LOW_SIDE = 32
_REGION = 64


@dataclass(frozen=True, slots=True)
class TextCase:
    """A prompt specification and its noise seed."""

    spec: PromptSpec
    seed: int


@dataclass(frozen=True, slots=True)
class NegativeCase:
    """A prompt that leaves the detail ``open`` open; the value the image shows becomes the negative prompt."""

    spec: PromptSpec
    open: Literal["shape", "color"]
    seed: int


@dataclass(frozen=True, slots=True)
class InpaintingCase:
    """A scene in which ``box`` (left, top, right, bottom, in pixels) is repainted to show ``new``."""

    scene: world.Scene
    box: tuple[int, int, int, int]
    spec: PromptSpec
    new: ThingSpec
    seed: int


@dataclass(frozen=True, slots=True)
class DepthCase:
    """A scene to redraw with the same layout and other colours."""

    scene: world.Scene
    spec: PromptSpec
    seed: int


@dataclass(frozen=True, slots=True)
class UpscalingCase:
    """A scene to restore from its 32x32 image."""

    scene: world.Scene
    seed: int


def text_cases() -> list[TextCase]:
    """Half with one thing and a place, half with two things and a relation; some leave one detail out."""
    generator = np.random.default_rng((_SEED, 0))
    cases = []
    for number in range(TEXTS):
        spec = spec_of(world.draw_scene(generator, 1 if number % 2 == 0 else 2))
        if generator.random() < _LEFT_OUT:
            details: tuple[Detail, ...] = ("shape", "color", "size", "background")
            if spec.relation is None:
                details += ("place",)
            spec = spec.without(_choice(generator, details), int(generator.integers(len(spec.things))))
        cases.append(TextCase(spec, _SEED + number))
    return cases


def negative_cases() -> list[NegativeCase]:
    """One thing without a shape or a colour; some also leave out size, place or background."""
    generator = np.random.default_rng((_SEED, 1))
    cases = []
    for number in range(NEGATIVES):
        detail: Literal["shape", "color"] = "shape" if number % 2 == 0 else "color"
        spec = spec_of(world.draw_scene(generator, 1)).without(detail)
        optional_details: tuple[Detail, ...] = ("size", "place", "background")
        for optional in optional_details:
            if generator.random() < 0.5:
                spec = spec.without(optional)
        cases.append(NegativeCase(spec, detail, _SEED + 1000 + number))
    return cases


def inpainting_cases() -> list[InpaintingCase]:
    """Scenes in which the second of two things, or the only one, is to be replaced."""
    generator = np.random.default_rng((_SEED, 2))
    cases = []
    for number in range(INPAINTINGS):
        scene = world.draw_scene(generator, 2 if number % 2 == 0 else 1)
        *unchanged, old = scene.things
        new = replace(
            old,
            shape=_choice(generator, [shape for shape in world.SHAPES if shape != old.shape]),
            color=_choice(generator, [color for color in world.COLORS if color != old.color]),
            size=_choice(generator, tuple(world.SIZES)),
        )
        spec = spec_of(replace(scene, things=(*unchanged, new)))
        box = region(old.place)
        cases.append(InpaintingCase(scene, box, spec, spec.things[-1], _SEED + 2000 + number))
    return cases


def depth_cases() -> list[DepthCase]:
    """One or two things in other colours; some prompts leave out shapes, sizes or the background."""
    generator = np.random.default_rng((_SEED, 3))
    cases = []
    for number in range(DEPTHS):
        scene = world.draw_scene(generator, 1 if number % 2 == 0 else 2)
        things = tuple(
            replace(
                thing, color=_choice(generator, [color for color in world.COLORS if color != thing.color])
            )
            for thing in scene.things
        )
        spec = spec_of(replace(scene, things=things))
        left_out: list[Detail] = ["shape"] if number // 2 % 2 == 0 else []
        left_out += ["size"] if generator.random() < 0.5 else []
        for detail in left_out:
            for index in range(len(things)):
                spec = spec.without(detail, index)
        if generator.random() < 0.5:
            spec = spec.without("background")
        cases.append(DepthCase(scene, spec, _SEED + 3000 + number))
    return cases


def upscaling_cases() -> list[UpscalingCase]:
    """Random scenes."""
    generator = np.random.default_rng((_SEED, 4))
    return [UpscalingCase(world.draw_scene(generator), _SEED + 4000 + number) for number in range(UPSCALINGS)]


def region(place: str) -> tuple[int, int, int, int]:
    """Rectangle (left, top, right, bottom), aligned to latents, that contains any thing at a place."""
    left, top = (round((center - _REGION / 2) / 8) * 8 for center in world.PLACES[place])
    left, top = (min(max(start, 0), world.SIDE - _REGION) for start in (left, top))
    return left, top, left + _REGION, top + _REGION


def mask_of(box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """A mask [128, 128] that is True inside a rectangle."""
    left, top, right, bottom = box
    mask = np.zeros((world.SIDE, world.SIDE), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def low_resolution(picture: NDArray[np.uint8], side: int = LOW_SIDE) -> NDArray[np.uint8]:
    """Downscale an image [128, 128, 3] by area means: [side, side, 3]."""
    squares = picture.reshape(side, world.SIDE // side, side, world.SIDE // side, 3)
    return np.asarray(np.rint(squares.mean((1, 3))), np.uint8)


def _choice(generator: np.random.Generator, values: Sequence[T]) -> T:
    return values[int(generator.integers(len(values)))]
