from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from sd2rt.engines.bundle.sampler_config import SAMPLER_OPTIONS, SamplerName

from ..conftest import Command, Refused

NAMES: tuple[SamplerName, ...] = get_args(SamplerName)


def test_every_sampler_is_listed(sd2rt: Command) -> None:
    lines = sd2rt("samplers").out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *NAMES]
    assert "DPM-Solver++ multistep, SDE" in lines[1 + NAMES.index("dpmpp-2m-sde")]


def test_json_tells_what_each_takes(sd2rt: Command) -> None:
    facts = {each["name"]: each for each in json.loads(sd2rt("samplers", "--json").out)}
    assert set(facts) == set(NAMES)
    assert facts["heun"]["evaluations_per_step"] == 2
    assert facts["unipc"]["options"] == json.loads(json.dumps(SAMPLER_OPTIONS["unipc"]))
    assert facts["lcm"]["schedules"] == []
    assert "karras" in facts["euler"]["schedules"]
    assert "karras" not in facts["ddim"]["schedules"]


def test_a_plot_is_a_picture(sd2rt: Command, tmp_path: Path) -> None:
    png, svg = tmp_path / "new" / "all.png", tmp_path / "two.svg"
    assert sd2rt("samplers", "--plot", str(png)).out.strip() == str(png)
    pixels = np.asarray(Image.open(png).convert("L"))
    assert pixels.shape[0] > 19 * 150
    assert (pixels < 200).mean() > 0.01
    sd2rt("samplers", "heun", "deis", "--plot", str(svg), "--schedule", "karras", "--steps", "8")
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "no sampler is named 'nobody'"),
        (
            ["ddim", "--plot", "x.png", "--schedule", "karras"],
            "ddim has no schedule karras: choose one of leading",
        ),
        (
            ["ddim", "--plot", "x.png", "--sampler-option", "solver_order=3"],
            "ddim has no option solver_order",
        ),
        (["unipc", "--plot", "x.png", "--sampler-option", "solver_order=4"], "solver_order of unipc is 4"),
        (["ddim", "--plot", "x.png", "--sampler-option", "set_alpha_to_one"], "is not NAME=VALUE"),
        (["ddim", "--plot", "x.jpg"], "neither a .png nor an .svg file"),
        (["ddim", "--plot", "x.png", "--prediction", "noise"], "--prediction is 'noise'"),
    ],
)
def test_bad_requests_are_told_in_a_line(arguments: list[str], message: str, refused: Refused) -> None:
    assert message in refused(2, "samplers", *arguments)
