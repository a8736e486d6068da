"""Rows merged with the command's options."""

from __future__ import annotations

from typing import Any

import pytest

from sd2rt.runtime.rows.row import parse_row
from sd2rt.runtime.rows.series import Series


def fields_of(row: str, **command: Any) -> dict[str, Any]:
    requests = Series({"grid": "diffusers", **command}, 1, 3).first(parse_row(f'{{"prompt": "a", {row}}}', 1))
    request = requests.first
    return {name: getattr(request, name) for name in ("sampler", "schedule", "grid")}


@pytest.mark.parametrize(
    ("row", "sampler", "schedule"),
    [
        ('"sampler": "DPM++ 2M Karras"', "dpmpp-2m", "karras"),
        ('"schedule": "beta", "sampler": "DPM++ 2M Karras"', "dpmpp-2m", "beta"),
        ('"sampler": "euler", "schedule": "Simple"', "euler", "trailing"),
        ('"sampler": "euler", "schedule": "Simple", "grid": "a1111"', "euler", "simple"),
        ('"sampler": "Restart", "schedule": "SGM Uniform", "grid": "a1111"', "restart", "sgm-uniform"),
    ],
)
def test_names_are_those_of_the_rows_grid(row: str, sampler: str, schedule: str) -> None:
    fields = fields_of(row)
    assert (fields["sampler"], fields["schedule"]) == (sampler, schedule)


def test_names_are_those_of_the_commands_grid() -> None:
    assert fields_of('"schedule": "Normal"', grid="a1111", sampler="heun") == {
        "sampler": "heun",
        "schedule": "normal",
        "grid": "a1111",
    }
    assert fields_of('"schedule": "Normal", "grid": "diffusers"', grid="a1111", sampler="heun") == {
        "sampler": "heun",
        "schedule": "linspace",
        "grid": "diffusers",
    }
