"""The sets are fixed; images are judged right if they match their prompt, else wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.demo import prompts, reader, world
from benchmarks.demo.prompt_spec import PromptSpec, ThingSpec, spec_of
from benchmarks.demo.verdict import judge


def test_a_prompt_without_gaps_is_the_worlds() -> None:
    generator = np.random.default_rng(1)
    for _ in range(50):
        scene = world.draw_scene(generator)
        assert spec_of(scene).prompt == world.describe(scene)


def test_what_is_left_open_is_left_out() -> None:
    spec = PromptSpec(
        (ThingSpec("circle", "red", "large", "in the center"),), background="a white background"
    )
    assert spec.prompt == "a large red circle in the center on a white background"
    assert (
        spec.without("shape").without("size").without("place").prompt == "a red shape on a white background"
    )
    assert spec.without("color").without("background").prompt == "a large circle in the center"
    two = PromptSpec((ThingSpec(color="orange"), ThingSpec("cross")), "above")
    assert two.prompt == "an orange shape above a cross"


def test_sets_are_fixed_and_large_enough() -> None:
    texts = prompts.text_cases()
    assert len(texts) >= 200
    assert texts == prompts.text_cases()
    assert sum(case.spec.relation is None for case in texts) == len(texts) / 2
    assert [
        len(cases())
        for cases in (
            prompts.negative_cases,
            prompts.inpainting_cases,
            prompts.depth_cases,
            prompts.upscaling_cases,
        )
    ] == [50, 50, 40, 40]
    for case in prompts.negative_cases():
        assert getattr(case.spec.things[0], case.open) is None


def test_what_was_asked_for_is_judged_right() -> None:
    generator = np.random.default_rng(2)
    for _ in range(60):
        scene = world.draw_scene(generator)
        verdict = judge(reader.read(world.picture(scene)), spec_of(scene))
        assert verdict["all"] == [True], verdict


def test_what_is_wrong_is_judged_so() -> None:
    things = (
        world.Thing("circle", "red", "large", "on the left", (34, 64)),
        world.Thing("cross", "blue", "small", "on the right", (94, 64)),
    )
    scene = world.Scene(things, "a white background", "left of")
    reading = reader.read(world.picture(scene))
    swapped = judge(reading, replace(spec_of(scene), relation="right of"))
    assert swapped["relation"] == [False]
    assert swapped["color"] == swapped["shape"] == [True, True]
    other = replace(scene, things=(replace(things[0], color="green"), things[1]))
    verdict = judge(reading, spec_of(other))
    assert sorted(verdict["color"]) == [False, True]
    assert verdict["all"] == [False]
    alone = judge(reader.read(world.picture(replace(scene, things=things[:1]))), spec_of(scene))
    assert alone["things"] == [False]
    assert sorted(alone["shape"]) == [False, True]
    assert alone["relation"] == [False]
    empty = judge(reader.read(world.picture(replace(scene, things=()))), spec_of(scene))
    assert not any(empty["shape"] + empty["color"] + empty["size"] + empty["all"])
    assert empty["background"] == [True]


def test_what_is_left_open_is_not_judged() -> None:
    scene = world.draw_scene(np.random.default_rng(3), 1)
    verdict = judge(reader.read(world.picture(scene)), spec_of(scene).without("color").without("background"))
    assert set(verdict) == {"shape", "size", "place", "things", "all"}


@pytest.mark.parametrize("place", world.PLACES)
def test_a_region_has_all_of_a_thing(place: str) -> None:
    box = prompts.region(place)
    assert all(side % 8 == 0 for side in box)
    mask = prompts.mask_of(box)
    x, y = world.PLACES[place]
    for dx in (-world.JITTER, world.JITTER):
        for dy in (-world.JITTER, world.JITTER):
            thing = world.Thing("square", "red", "large", place, (x + dx, y + dy))
            assert not world.cover(thing)[~mask].any()


def test_inpainted_things_differ_from_what_was_there() -> None:
    for case in prompts.inpainting_cases():
        old = case.scene.things[-1]
        assert case.new.shape != old.shape
        assert case.new.color != old.color
        kept = [world.cover(thing) for thing in case.scene.things[:-1]]
        assert not any(cover[prompts.mask_of(case.box)].any() for cover in kept)


def test_low_resolution_is_an_area_mean() -> None:
    picture = world.picture(world.draw_scene(np.random.default_rng(4)))
    means = picture.reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert abs(prompts.low_resolution(picture) - means).max() <= 0.51
