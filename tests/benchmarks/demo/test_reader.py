"""The reader finds exactly what the world drew, also in degraded images."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from benchmarks.demo import reader, world

Picture = NDArray[np.uint8]
Harm = Callable[[Picture, np.random.Generator], Picture]

SCENES, FEWER = 400, 120
LEVEL = 10.0


def _levels(values: NDArray[np.floating]) -> Picture:
    return np.asarray(np.rint(values.clip(0, 255)), np.uint8)


def _blur(picture: Picture, generator: np.random.Generator) -> Picture:
    return _levels(ndimage.gaussian_filter(picture.astype(np.float32), (1.5, 1.5, 0)))


def _noise(picture: Picture, generator: np.random.Generator) -> Picture:
    return _levels(picture + generator.normal(0, LEVEL, picture.shape))


def _halve(picture: Picture, generator: np.random.Generator) -> Picture:
    small = Image.fromarray(picture).resize((64, 64), Image.Resampling.BOX)
    return np.asarray(small.resize((128, 128), Image.Resampling.BICUBIC))


def _compress(picture: Picture, generator: np.random.Generator) -> Picture:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


def _speckle(picture: Picture, generator: np.random.Generator) -> Picture:
    where = generator.random(picture.shape[:2]) < 0.02
    picture = picture.copy()
    picture[where] = generator.integers(0, 256, (np.count_nonzero(where), 3))
    return picture


def _all(picture: Picture, generator: np.random.Generator) -> Picture:
    return _noise(_blur(_levels(picture + generator.uniform(-20, 20, 3)), generator), generator)


def _is_read(scene: world.Scene, picture: Picture) -> bool:
    reading = reader.read(picture)
    if len(reading.things) != len(scene.things) or reading.background != scene.background:
        return False
    for thing in scene.things:
        seen = min(reading.things, key=lambda one: np.hypot(*np.subtract(one.center, thing.center)))
        if (seen.shape, seen.color, seen.size) != (thing.shape, thing.color, thing.size):
            return False
        if seen.place != thing.place or abs(np.subtract(seen.center, thing.center)).max() > 2:
            return False
    if scene.relation is None:
        return True
    first, second = scene.things
    return reader.relation(first.center, second.center) == scene.relation


@pytest.mark.parametrize(
    ("harm", "count", "share"),
    [
        (lambda picture, generator: picture, SCENES, 0.99),
        (_blur, FEWER, 0.97),
        (_noise, FEWER, 0.97),
        (_halve, FEWER, 0.97),
        (_compress, FEWER, 0.97),
        (_speckle, FEWER, 0.97),
        (_all, SCENES, 0.97),
    ],
    ids=["clean", "blurred", "noisy", "halved", "compressed", "speckled", "tinted, blurred and noisy"],
)
def test_what_was_drawn_is_read(harm: Harm, count: int, share: float) -> None:
    generator = np.random.default_rng(20)
    scenes = [world.draw_scene(generator) for _ in range(count)]
    right = sum(_is_read(scene, harm(world.picture(scene), generator)) for scene in scenes)
    assert right >= share * count


def _with(thing: world.Thing, detail: str, name: str) -> world.Thing:
    changed: dict[str, Any] = {detail: name}
    return replace(thing, **changed)


@pytest.mark.parametrize(
    ("detail", "names"),
    [("shape", world.SHAPES), ("color", tuple(world.COLORS)), ("size", tuple(world.SIZES))],
)
def test_another_detail_is_read_as_that(detail: str, names: tuple[str, ...]) -> None:
    generator = np.random.default_rng(21)
    for _ in range(10):
        scene = world.draw_scene(generator, 1)
        for name in names:
            thing = _with(scene.things[0], detail, name)
            (seen,) = reader.read(_blur(world.picture(replace(scene, things=(thing,))), generator)).things
            assert getattr(seen, detail) == name


def test_another_place_is_read_as_that() -> None:
    generator = np.random.default_rng(22)
    scene = world.draw_scene(generator, 1)
    for name, center in world.PLACES.items():
        thing = replace(scene.things[0], place=name, center=center)
        (seen,) = reader.read(world.picture(replace(scene, things=(thing,)))).things
        assert seen.place == name


@pytest.mark.parametrize("color", world.COLORS)
def test_two_things_of_a_colour_are_told_apart(color: str) -> None:
    generator = np.random.default_rng(23)
    for _ in range(10):
        scene = world.draw_scene(generator, 2)
        things = tuple(replace(thing, color=color, size="large") for thing in scene.things)
        picture = _blur(world.picture(replace(scene, things=things)), generator)
        assert [seen.color for seen in reader.read(picture).things] == [color] * 2


def test_things_that_touch_are_told_apart() -> None:
    things = tuple(
        world.Thing("circle", color, "large", place, (x, 64.0))
        for color, place, x in (("red", "on the left", 41.0), ("red", "on the right", 87.0))
    )
    scene = world.Scene(things, "a white background", "left of")
    assert len(reader.read(world.picture(scene)).things) == 2
    scene = replace(scene, things=(things[0], replace(things[1], color="blue")))
    assert {seen.color for seen in reader.read(world.picture(scene)).things} == {"red", "blue"}


def test_what_is_between_two_shapes_has_none() -> None:
    y, x = (np.indices((128, 128)) - 63.5) / world.SIZES["large"]
    read = []
    for power in (2.0, 2.4, 2.8, 3.2, 3.6, 4.0, 5.0, 7.0, 12.0):
        inside = abs(x) ** power + abs(y) ** power <= 1
        picture = np.where(inside[..., None], world.COLORS["blue"], 250).astype(np.uint8)
        (seen,) = reader.read(picture).things
        read.append(seen.shape)
    assert list(dict.fromkeys(read)) == ["circle", None, "square"]


@pytest.mark.parametrize("background", world.BACKGROUNDS)
def test_an_empty_picture_shows_a_background(background: str) -> None:
    picture = world.picture(world.Scene((), background))
    reading = reader.read(_noise(picture, np.random.default_rng(24)))
    assert reading.things == ()
    assert reading.background == background
    assert (reading.top, reading.bottom) == pytest.approx(world.BACKGROUNDS[background], abs=4)


@pytest.mark.parametrize("pitch", [1, 4, 16, 128])
def test_noise_shows_nothing(pitch: int) -> None:
    generator = np.random.default_rng(25)
    for _ in range(20):
        cells = generator.integers(0, 256, (128 // pitch, 128 // pitch, 3), np.uint8)
        picture = cells.repeat(pitch, 0).repeat(pitch, 1)
        assert reader.read(picture).things == ()
        assert not reader.thing_mask(picture).any()


def test_masks_are_what_the_world_covers() -> None:
    generator = np.random.default_rng(26)
    for _ in range(40):
        scene = world.draw_scene(generator)
        true = np.max([world.cover(thing) for thing in scene.things], axis=0) >= 0.5
        found = reader.thing_mask(_blur(world.picture(scene), generator))
        assert np.count_nonzero(true & found) / np.count_nonzero(true | found) > 0.8


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(128, 128, 3\)"):
        reader.read(np.zeros((64, 64, 3), np.uint8))
