"""The fixed sets that the demo checkpoints are scored on: prompts, pictures and masks, made from seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.demo import world
from benchmarks.demo.asked import Asked, AskedThing, Detail, ask

T = TypeVar("T")

TEXTS, NEGATIVES, INPAINTINGS, DEPTHS, UPSCALINGS = 240, 50, 50, 40, 40
_SEED = 7_000
"""Of all sets: the numbers are drawn from this and the set's own."""
_LEFT_OUT = 0.15
"""Share of text prompts that leave one detail out."""
LOW_SIDE = 32
_REGION = 64


@dataclass(frozen=True, slots=True)
class TextCase:
    """A prompt, what it asks for, and the seed of its noise."""

    asked: Asked
    seed: int


@dataclass(frozen=True, slots=True)
class NegativeCase:
    """A prompt that leaves ``open`` open: what the picture shows of it becomes the negative prompt."""

    asked: Asked
    open: Literal["shape", "color"]
    seed: int


@dataclass(frozen=True, slots=True)
class InpaintingCase:
    """A scene of which ``box`` (left, top, right, bottom, in pixels) is made anew, to show ``new``."""

    scene: world.Scene
    box: tuple[int, int, int, int]
    asked: Asked
    new: AskedThing
    seed: int


@dataclass(frozen=True, slots=True)
class DepthCase:
    """A scene whose layout is kept and whose things get other colours."""

    scene: world.Scene
    asked: Asked
    seed: int


@dataclass(frozen=True, slots=True)
class UpscalingCase:
    """A scene that is to come back from its picture of 32x32."""

    scene: world.Scene
    seed: int


def text_cases() -> list[TextCase]:
    """Half of one thing with a place, half of two with a relation; some leave one detail out."""
    generator = np.random.default_rng((_SEED, 0))
    cases = []
    for number in range(TEXTS):
        asked = ask(world.draw_scene(generator, 1 if number % 2 == 0 else 2))
        if generator.random() < _LEFT_OUT:
            details: tuple[Detail, ...] = ("shape", "color", "size", "background")
            if asked.relation is None:
                details += ("place",)
            asked = asked.without(_any(generator, details), int(generator.integers(len(asked.things))))
        cases.append(TextCase(asked, _SEED + number))
    return cases


def negative_cases() -> list[NegativeCase]:
    """One thing without a shape or without a colour, and at times without more."""
    generator = np.random.default_rng((_SEED, 1))
    cases = []
    for number in range(NEGATIVES):
        detail: Literal["shape", "color"] = "shape" if number % 2 == 0 else "color"
        asked = ask(world.draw_scene(generator, 1)).without(detail)
        others: tuple[Detail, ...] = ("size", "place", "background")
        for other in others:
            if generator.random() < 0.5:
                asked = asked.without(other)
        cases.append(NegativeCase(asked, detail, _SEED + 1000 + number))
    return cases


def inpainting_cases() -> list[InpaintingCase]:
    """Another thing in the place of the second of two, or of the only one."""
    generator = np.random.default_rng((_SEED, 2))
    cases = []
    for number in range(INPAINTINGS):
        scene = world.draw_scene(generator, 2 if number % 2 == 0 else 1)
        *kept, old = scene.things
        new = replace(
            old,
            shape=_any(generator, [shape for shape in world.SHAPES if shape != old.shape]),
            color=_any(generator, [color for color in world.COLORS if color != old.color]),
            size=_any(generator, tuple(world.SIZES)),
        )
        asked = ask(replace(scene, things=(*kept, new)))
        box = region(old.place)
        cases.append(InpaintingCase(scene, box, asked, asked.things[-1], _SEED + 2000 + number))
    return cases


def depth_cases() -> list[DepthCase]:
    """One thing or two in other colours, with their shapes or without; sizes and backgrounds at times."""
    generator = np.random.default_rng((_SEED, 3))
    cases = []
    for number in range(DEPTHS):
        scene = world.draw_scene(generator, 1 if number % 2 == 0 else 2)
        things = tuple(
            replace(thing, color=_any(generator, [color for color in world.COLORS if color != thing.color]))
            for thing in scene.things
        )
        asked = ask(replace(scene, things=things))
        left_out: list[Detail] = ["shape"] if number // 2 % 2 == 0 else []
        left_out += ["size"] if generator.random() < 0.5 else []
        for detail in left_out:
            for index in range(len(things)):
                asked = asked.without(detail, index)
        if generator.random() < 0.5:
            asked = asked.without("background")
        cases.append(DepthCase(scene, asked, _SEED + 3000 + number))
    return cases


def upscaling_cases() -> list[UpscalingCase]:
    """Scenes as they come."""
    generator = np.random.default_rng((_SEED, 4))
    return [UpscalingCase(world.draw_scene(generator), _SEED + 4000 + number) for number in range(UPSCALINGS)]


def region(place: str) -> tuple[int, int, int, int]:
    """The rectangle, in whole latents, that has all of a thing at a place in it: left, top, right, bottom."""
    left, top = (round((center - _REGION / 2) / 8) * 8 for center in world.PLACES[place])
    left, top = (min(max(start, 0), world.SIDE - _REGION) for start in (left, top))
    return left, top, left + _REGION, top + _REGION


def mask_of(box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """True in a rectangle: [128, 128]."""
    left, top, right, bottom = box
    mask = np.zeros((world.SIDE, world.SIDE), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def low_resolution(picture: NDArray[np.uint8], side: int = LOW_SIDE) -> NDArray[np.uint8]:
    """A picture [128, 128, 3] by the means of its squares: [side, side, 3]."""
    squares = picture.reshape(side, world.SIDE // side, side, world.SIDE // side, 3)
    return np.asarray(np.rint(squares.mean((1, 3))), np.uint8)


def _any(generator: np.random.Generator, values: Sequence[T]) -> T:
    return values[int(generator.integers(len(values)))]
