"""Settings are compared on the same prompts, with shares and their intervals."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from benchmarks import render
from benchmarks.demo import settings, world
from benchmarks.demo.painter import Order, Picture, Settings
from benchmarks.page.latest import Results


class WhitePainter:
    """Returns white images and records the settings."""

    painted: list[Settings] = []  # noqa: RUF012

    def __init__(self, bundle: str, **options: Any) -> None:
        self.bundle = bundle

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def paint(self, orders: Sequence[Order], settings: Settings) -> list[Picture]:
        if settings.guidance == 2:
            raise KeyboardInterrupt
        self.painted.append(settings)
        scene = world.Scene((), "a white background")
        return [world.picture(scene) for _ in orders]


def test_rows_are_measured_until_it_is_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings, "Sd2rtPainter", WhitePainter)
    monkeypatch.setattr(WhitePainter, "painted", [])
    output = tmp_path / "settings.json"
    monkeypatch.setattr(sys, "argv", ["settings", "--limit", "2", "--output", str(output)])
    with pytest.raises(SystemExit) as stopped:
        settings.main()
    assert stopped.value.code == 130
    value = json.loads(output.read_text())
    assert not value["complete"]
    # No fp16 bundle was given, and the interrupted row is left out.
    before = settings.ROWS[: settings.ROWS.index(settings.Row(guidance=2.0))]
    assert [row["name"] for row in value["rows"]] == [str(row) for row in before if row.precision == "fp32"]
    assert [(one.sampler, one.steps) for one in WhitePainter.painted] == [
        (row.sampler, row.steps) for row in before if row.precision == "fp32"
    ]
    assert value["rows"][0]["counts"]["all"] == {
        "right": 0,
        "of": 2,
        "share": 0.0,
        "low": 0.0,
        "high": 0.6576,
    }
    page = render.page(Results(tmp_path), tmp_path)
    assert "| euler-a, 8 steps, guidance 4, fp32 | 0.0% (0% to " in page
