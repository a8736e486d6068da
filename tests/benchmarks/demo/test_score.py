"""Correct images count as right and blank ones as wrong, and shares have intervals."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from unittest.mock import Mock

import numpy as np
import pytest

from benchmarks import render
from benchmarks.demo import prompts, score, sd2rt_painter, sets, world
from benchmarks.demo.painter import Order, Picture, Settings
from benchmarks.demo.score_tables import score_table
from benchmarks.demo.sets import SETS
from benchmarks.demo.tally import Tally, wilson
from benchmarks.page.latest import Results
from sd2rt.runtime import Pipeline

SETTINGS = Settings(steps=1, guidance=1.0)


class FakePainter:
    """Renders the correct scene of each prompt, and another thing for a negative prompt."""

    def __init__(self, truths: dict[str, world.Scene], blank: bool = False) -> None:
        self._truths = truths
        self._blank = blank

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def paint(self, orders: Sequence[Order], settings: Settings) -> list[Picture]:
        if self._blank:
            return [np.full((world.SIDE, world.SIDE, 3), 250, np.uint8) for _ in orders]
        return [self._paint(order) for order in orders]

    def _paint(self, order: Order) -> Picture:
        scene = self._truths[order.prompt]
        if not order.negative:
            return world.picture(scene)
        (thing,) = scene.things
        shape, color = (
            next(name for name in names if name not in (order.negative, own))
            if own == order.negative
            else own
            for names, own in ((world.SHAPES, thing.shape), (tuple(world.COLORS), thing.color))
        )
        other = world.Thing(shape, color, thing.size, thing.place, thing.center)
        return world.picture(world.Scene((other,), scene.background))

    def round_trip(self, picture: Picture) -> Picture:
        return picture


def _truth(spec: Any, thing: world.Thing | None = None) -> world.Scene:
    """A scene that matches a prompt; open details get defaults."""
    places = world.RELATIONS[spec.relation] if spec.relation else (spec.things[0].place or "in the center",)
    things = tuple(
        world.Thing(t.shape or "circle", t.color or "red", t.size or "medium", place, world.PLACES[place])
        for t, place in zip(spec.things, places, strict=True)
    )
    return world.Scene(things, spec.background or "a white background", spec.relation)


@pytest.mark.parametrize("name", ["text", "negative"])
def test_what_was_asked_for_is_counted_right(name: str) -> None:
    truths = {case.spec.prompt: _truth(case.spec) for case in SETS[name].cases()}
    tally, seen = Tally(), list[int]()
    sets.run(
        name,
        FakePainter(truths),
        SETTINGS,
        tally,
        batch=4,
        limit=10,
        on_case=lambda index, count, pictures: seen.append(index),
    )
    assert seen == list(range(10))
    counts = tally.result()["counts"]
    assert all(count["share"] == 1 for count in counts.values()), counts
    assert counts["all" if name == "text" else "negative"]["of"] == 10


def test_inpainted_depth_and_enlarged_pictures_are_counted_right() -> None:
    truths = {}
    for case in prompts.inpainting_cases()[:6]:
        *kept, old = case.scene.things
        new = world.Thing(str(case.new.shape), str(case.new.color), str(case.new.size), old.place, old.center)
        truths[case.spec.prompt] = world.Scene((*kept, new), case.scene.background, case.scene.relation)
    counts = _counts("inpainting", FakePainter(truths), 6)
    assert counts["inpainting"]["right"] == 6
    truths = {}
    for one in prompts.depth_cases()[:6]:
        things = tuple(
            world.Thing(thing.shape, str(spec.color), thing.size, thing.place, thing.center)
            for thing, spec in zip(one.scene.things, one.spec.things, strict=True)
        )
        truths[one.spec.prompt] = world.Scene(things, one.scene.background, one.scene.relation)
    assert _counts("depth", FakePainter(truths), 6)["depth"]["right"] == 6
    truths = {world.describe(one.scene): one.scene for one in prompts.upscaling_cases()[:6]}
    assert _counts("upscaler", FakePainter(truths), 6)["upscaler"]["right"] == 6


@pytest.mark.parametrize("name", SETS)
def test_a_blank_picture_is_never_right(name: str) -> None:
    counts = _counts(name, FakePainter({}, blank=True), 4)
    assert counts["all" if name == "text" else name]["right"] == 0


def _counts(name: str, painter: FakePainter, limit: int) -> dict[str, Any]:
    tally = Tally()
    sets.run(name, painter, SETTINGS, tally, batch=4, limit=limit)
    counts: dict[str, Any] = tally.result()["counts"]
    return counts


def test_an_interrupted_set_keeps_what_was_judged() -> None:
    truths = {case.spec.prompt: _truth(case.spec) for case in prompts.text_cases()}
    tally = Tally()

    def stop(index: int, count: int, pictures: sets.CaseImages) -> None:
        if index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sets.run("text", FakePainter(truths), SETTINGS, tally, batch=2, on_case=stop)
    assert tally.result()["counts"]["all"]["of"] == 3


def test_intervals_are_wilsons() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(29, 29) == pytest.approx((0.8830, 1.0), abs=1e-4)
    with pytest.raises(ValueError, match="no interval"):
        wilson(0, 0)


def test_error_is_measured_in_decibels() -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    assert sets.psnr(black, black) == 100
    assert sets.psnr(black, black + 1) == pytest.approx(20 * math.log10(255))


def test_the_table_has_goals_and_says_what_misses_them() -> None:
    def score(engine: str, share: float) -> dict[str, Any]:
        count = {"right": 9, "of": 10, "share": share, "low": share - 0.1, "high": share + 0.03}
        return {
            "engine": engine,
            "kind": "base",
            "set": "text",
            "counts": {"color": count, "size": count},
            "means": {},
        }

    value = {
        "steps": 25,
        "guidance_scale": 7.5,
        "upscaler_guidance_scale": 1.0,
        "sampler": None,
        "precision": "fp32",
        "device": "cpu",
        "complete": True,
        "scores": [score("sd2rt", 0.93), score("diffusers", 0.5)],
    }
    table = score_table(value)
    assert "| text-to-image, base: colour | >= 95% | 93.0% (83% to 96% of 10) | 50.0%" in table
    assert "**no**, within its interval" in table
    assert "base: size |  |" in table


def _command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["score", *arguments])
    score.main()


def test_the_command_writes_what_it_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    truths = {case.spec.prompt: _truth(case.spec) for case in prompts.text_cases()}
    monkeypatch.setattr(score, "_painter", lambda job, options: FakePainter(truths))
    output, pictures = tmp_path / "drawn.json", tmp_path / "pictures"
    _command(
        monkeypatch,
        *("--sets", "text", "--kinds", "v", "--limit", "3"),
        *("--output", str(output), "--pictures", str(pictures)),
    )
    value = json.loads(output.read_text())
    assert value["complete"]
    (found,) = value["scores"]
    assert (found["engine"], found["kind"], found["set"], found["cases"]) == ("sd2rt", "v", "text", 3)
    assert found["counts"]["all"]["right"] == 3
    assert len(list(pictures.iterdir())) == 3
    page = render.page(Results(tmp_path), tmp_path)
    assert "| text-to-image, v: colour | >= 95% | 100.0%" in page


def test_a_run_is_told_until_later_ones_have_all_of_its_sets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    truths = {case.spec.prompt: _truth(case.spec) for case in prompts.text_cases()}
    monkeypatch.setattr(score, "_painter", lambda job, options: FakePainter(truths))
    for name, kind, limit, date in (("old", "v", "2", "2026-01-01"), ("new", "base", "3", "2026-01-02")):
        output = tmp_path / f"{name}.json"
        _command(monkeypatch, "--sets", "text", "--kinds", kind, "--limit", limit, "--output", str(output))
        value = json.loads(output.read_text())
        value["machine"]["date"] = date
        value["scores"] += (
            [dict(value["scores"][0], set="depth", counts={}, means={})] if name == "new" else []
        )
        output.write_text(json.dumps(value))
    page = render.page(Results(tmp_path), tmp_path)
    assert "text-to-image, base" in page
    assert "text-to-image, v" not in page


def test_the_command_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Interrupted(FakePainter):
        def paint(self, orders: Sequence[Order], settings: Settings) -> list[Picture]:
            if orders[0].seed > prompts.text_cases()[0].seed:
                raise KeyboardInterrupt
            return super().paint(orders, settings)

    truths = {case.spec.prompt: _truth(case.spec) for case in prompts.text_cases()}
    monkeypatch.setattr(score, "_painter", lambda job, options: Interrupted(truths))
    output = tmp_path / "drawn.json"
    with pytest.raises(SystemExit) as stopped:
        _command(monkeypatch, "--sets", "text", "--batch", "2", "--output", str(output))
    assert stopped.value.code == 130
    value = json.loads(output.read_text())
    assert not value["complete"]
    assert [found["cases"] for found in value["scores"]] == [2]


def test_diffusers_wants_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="--checkpoints"):
        _command(monkeypatch, "--engines", "diffusers")


def test_a_bundle_of_another_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Mock(precision="fp16")
    monkeypatch.setattr(Pipeline, "open", lambda *arguments, **options: opened)
    with pytest.raises(ValueError, match="demo is fp16, not fp32: build it with --precision fp32"):
        sd2rt_painter.Sd2rtPainter("demo")
    opened.close.assert_called_once_with()


def test_bfloat16_is_asked_of_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    opening = Mock(return_value=Mock(precision="bf16"))
    monkeypatch.setattr(Pipeline, "open", opening)
    sd2rt_painter.Sd2rtPainter("demo", precision="bf16")
    assert opening.call_args.kwargs["precision"] == "bf16"
