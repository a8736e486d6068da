"""The world of the demo checkpoints: one or two shaded shapes on a neutral background, and captions.

Everything is determined by a seeded generator. Colours are saturated and backgrounds are not, so that
:mod:`benchmarks.demo.reader` can analyse images by code. Lengths are in pixels of a 128x128 image, x to the right and
y downwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SIDE = 128

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 25, 25),
    "orange": (250, 130, 10),
    "yellow": (245, 225, 20),
    "green": (30, 165, 45),
    "cyan": (25, 205, 215),
    "blue": (30, 60, 225),
    "purple": (125, 30, 180),
    "pink": (250, 105, 190),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES: dict[str, float] = {"small": 13.0, "medium": 18.0, "large": 24.0}
"""Half of a shape's extent."""

_LOW, _MIDDLE, _HIGH = 34.0, 64.0, 94.0
PLACES: dict[str, tuple[float, float]] = {
    "in the center": (_MIDDLE, _MIDDLE),
    "on the left": (_LOW, _MIDDLE),
    "on the right": (_HIGH, _MIDDLE),
    "at the top": (_MIDDLE, _LOW),
    "at the bottom": (_MIDDLE, _HIGH),
    "in the top left corner": (_LOW, _LOW),
    "in the top right corner": (_HIGH, _LOW),
    "in the bottom left corner": (_LOW, _HIGH),
    "in the bottom right corner": (_HIGH, _HIGH),
}
"""Centres of things, to within JITTER."""
JITTER = 4.0

RELATIONS: dict[str, tuple[str, str]] = {
    "left of": ("on the left", "on the right"),
    "right of": ("on the right", "on the left"),
    "above": ("at the top", "at the bottom"),
    "below": ("at the bottom", "at the top"),
}
"""The places of the first and of the second of two things."""

BACKGROUNDS: dict[str, tuple[int, int]] = {
    "a white background": (250, 250),
    "a gray background": (150, 150),
    "a black background": (12, 12),
    "a light gradient background": (250, 160),
    "a dark gradient background": (25, 115),
}
"""Grey levels at the top and bottom."""

_SHADE = 0.28
"""Darkening at the lower right edge, under light from the upper left."""
_NEARNESS: dict[str, float] = {"small": 0.35, "medium": 0.6, "large": 0.85}
_BULGE = 0.15
"""Extra nearness of a thing's middle over its rim."""
GROUND = 0.2
"""Nearness of a gradient background at its bottom; a plain background is infinitely far (0). All things are
nearer."""
_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape; ``place`` is a key of PLACES, ``center`` the exact position."""

    shape: str
    color: str
    size: str
    place: str
    center: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scene:
    """One or two things on a background; ``relation`` is the first's position relative to the second."""

    things: tuple[Thing, ...]
    background: str
    relation: str | None = None


def draw_scene(generator: np.random.Generator, count: Literal[1, 2] | None = None) -> Scene:
    """Draw a random scene of ``count`` things; by default, six in ten have two."""
    two = count == 2 if count is not None else generator.random() < 0.6
    background = _any(generator, tuple(BACKGROUNDS))
    if not two:
        return Scene((_draw_thing(generator, _any(generator, tuple(PLACES))),), background)
    relation = _any(generator, tuple(RELATIONS))
    first, second = (_draw_thing(generator, place) for place in RELATIONS[relation])
    return Scene((first, second), background, relation)


def _draw_thing(generator: np.random.Generator, place: str) -> Thing:
    x, y = PLACES[place]
    dx, dy = generator.uniform(-JITTER, JITTER, 2)
    return Thing(
        shape=_any(generator, SHAPES),
        color=_any(generator, tuple(COLORS)),
        size=_any(generator, tuple(SIZES)),
        place=place,
        center=(x + float(dx), y + float(dy)),
    )


def _any(generator: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(generator.integers(len(names)))]


def describe(scene: Scene) -> str:
    """The complete caption: place or relation, sizes, colours, shapes and background."""
    return _sentence(
        [f"a {t.size} {t.color} {t.shape}" for t in scene.things], scene, place=True, background=True
    )


def caption(scene: Scene, generator: np.random.Generator) -> str:
    """A true caption of ``scene`` with details left out at random: usually few, in three of ten cases most.

    For one thing, every tenth caption is only a colour or a shape, like a negative prompt.
    """
    omit = 0.7 if generator.random() < 0.3 else 0.1
    if len(scene.things) == 1 and generator.random() < 0.1:
        thing = scene.things[0]
        return _any(generator, (thing.color, thing.shape, f"a {thing.shape}"))
    names = []
    for thing in scene.things:
        size = "" if generator.random() < omit else f"{thing.size} "
        color = "" if generator.random() < omit / 2 else f"{thing.color} "
        shape = "shape" if generator.random() < omit / 2 else thing.shape
        names.append(f"{size}{color}{shape}")
    names = [("an " if name.startswith("orange") else "a ") + name for name in names]
    return _sentence(
        names, scene, place=generator.random() >= omit, background=bool(generator.random() >= omit)
    )


def _sentence(names: Sequence[str], scene: Scene, *, place: bool, background: bool) -> str:
    if scene.relation is not None:
        text = f"{names[0]} {scene.relation} {names[1]}"
    else:
        text = f"{names[0]} {scene.things[0].place}" if place else names[0]
    return f"{text} on {scene.background}" if background else text


def picture(scene: Scene, side: int = SIDE) -> NDArray[np.uint8]:
    """Render ``scene``: [side, side, 3]."""
    colors = _background(scene, side)
    for thing in scene.things:
        cover, light = _cover(thing, side)
        color = np.array(COLORS[thing.color], np.float32) * light[..., None]
        colors += cover[..., None] * (color - colors)
    return np.asarray(np.rint(colors.clip(0, 255)), np.uint8)


def depth(scene: Scene, side: int = SIDE) -> NDArray[np.float32]:
    """Nearness map of ``scene``, 0 to 1, with MiDaS' sign (larger is nearer): [side, side]."""
    top, bottom = BACKGROUNDS[scene.background]
    ramp = np.linspace(0, GROUND if top != bottom else 0, side, dtype=np.float32)
    near = np.repeat(ramp[:, None], side, axis=1)
    for thing in scene.things:
        cover, _ = _cover(thing, side)
        near += cover * (_NEARNESS[thing.size] + _BULGE * _dome(thing, side) - near)
    return near


def cover(thing: Thing, side: int = SIDE) -> NDArray[np.float32]:
    """Share of each pixel covered by ``thing``: [side, side]."""
    return _cover(thing, side)[0]


def _background(scene: Scene, side: int) -> NDArray[np.float32]:
    top, bottom = BACKGROUNDS[scene.background]
    ramp = np.linspace(top, bottom, side, dtype=np.float32)
    return np.broadcast_to(ramp[:, None, None], (side, side, 3)).copy()


def _grid(thing: Thing, side: int, samples: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sample points relative to the thing's centre, in half extents: x [1, n], y [n, 1]."""
    points = (np.arange(side * samples, dtype=np.float32) + 0.5) * (SIDE / (side * samples))
    half = SIZES[thing.size]
    return (points[None, :] - thing.center[0]) / half, (points[:, None] - thing.center[1]) / half


def _cover(thing: Thing, side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    share = np.zeros((side, side), np.float32)
    x, y = _grid(thing, side, _SAMPLES)
    # Sample only the pixels that the thing can touch.
    (left, right), (top, bottom) = (_touched(points, _SAMPLES) for points in (x[0], y[:, 0]))
    fine = np.s_[top * _SAMPLES : bottom * _SAMPLES], np.s_[left * _SAMPLES : right * _SAMPLES]
    inside = _INSIDE[thing.shape](x[:, fine[1]], y[fine[0]])
    blocks = inside.reshape(bottom - top, _SAMPLES, right - left, _SAMPLES)
    share[top:bottom, left:right] = blocks.mean((1, 3), dtype=np.float32)
    x, y = _grid(thing, side, 1)
    light = 1 - _SHADE * (((x + y) / 2).clip(-1, 1) + 1) / 2
    return share, light.astype(np.float32)


def _touched(points: NDArray[np.float32], samples: int) -> tuple[int, int]:
    """First pixel that a thing touches along one axis, and one past the last."""
    (near,) = np.nonzero(abs(points) <= 1)
    return int(near[0]) // samples, int(near[-1]) // samples + 1


def _dome(thing: Thing, side: int) -> NDArray[np.float32]:
    x, y = _grid(thing, side, 1)
    return np.asarray(np.sqrt((1 - x * x - y * y).clip(0, 1)), np.float32)


def _circle(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.bool_]:
    return x * x + y * y <= 1


def _square(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.maximum(abs(x), abs(y)) <= 0.9


def _triangle(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.bool_]:
    return (abs(y) <= 0.9) & (2 * abs(x) <= y + 0.9)


def _cross(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.bool_]:
    return (np.minimum(abs(x), abs(y)) <= 0.36) & (np.maximum(abs(x), abs(y)) <= 1)


_INSIDE = {"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross}
