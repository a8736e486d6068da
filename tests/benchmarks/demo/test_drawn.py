"""The trained demo draws what its prompts ask for: the first cases of each set, analysed by code.

``python -m benchmarks.demo.score`` measures the whole sets and compares with diffusers. Seeds are fixed, so counts
differ between machines only by rounding. The bounds are the goals of the whole sets, or one case less for few cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from benchmarks.demo import prompts, sets
from benchmarks.demo.painter import Order, Settings
from benchmarks.demo.sd2rt_painter import Sd2rtPainter
from benchmarks.demo.tally import Tally
from sd2rt.engines.bundle.schema import Precision

Bundles = Callable[[str, Precision], Path]

PLAIN = Settings(steps=25, guidance=4.0)


def shares(bundle: Path, name: str, settings: Settings, cases: int) -> Mapping[str, float]:
    tally = Tally()
    with Sd2rtPainter(str(bundle), threads=1, batch=8) as painter:
        sets.run(name, painter, settings, tally, batch=8, limit=cases)
    result = tally.result()
    return {what: float(count["share"]) for what, count in result["counts"].items()} | dict(result["means"])


@pytest.mark.parametrize("name", ["demo", "demo-v"])
def test_a_prompt_gives_its_shapes_colours_and_places(trained_bundle: Bundles, name: str) -> None:
    right = shares(trained_bundle(name, "fp32"), "text", PLAIN, 32)
    assert right["color"] >= 0.95
    assert right["shape"] >= 0.95
    assert right["place"] >= 0.9
    assert right["relation"] >= 0.9
    assert right["background"] >= 0.95


def test_a_better_sampler_needs_fewer_steps(trained_bundle: Bundles) -> None:
    bundle = trained_bundle("demo", "fp32")
    many = shares(bundle, "text", Settings(steps=25, guidance=4.0, sampler="ddim"), 24)
    few = shares(bundle, "text", Settings(steps=12, guidance=4.0, sampler="dpmpp-2m"), 24)
    # One or two of the 36 things are borderline for the reader.
    assert few["shape"] >= many["shape"] - 0.06
    assert few["color"] >= many["color"] - 0.06


def test_half_precision_draws_the_same(trained_bundle: Bundles) -> None:
    orders = [Order(case.spec.prompt, case.seed) for case in prompts.text_cases()[:8]]
    pictures = []
    for precision in ("fp32", "fp16"):
        bundle = str(trained_bundle("demo", precision))
        with Sd2rtPainter(bundle, threads=1, batch=8, precision=precision) as painter:
            pictures.append(np.stack(painter.paint(orders, PLAIN)).astype(np.float32))
    assert float(abs(pictures[0] - pictures[1]).mean()) < 1.0


@pytest.mark.parametrize("name", ["demo", "demo-v"])
def test_a_negative_prompt_removes_what_it_names(trained_bundle: Bundles, name: str) -> None:
    assert shares(trained_bundle(name, "fp32"), "negative", PLAIN, 24)["negative"] >= 0.8


def test_inpainting_fills_the_mask_by_the_prompt_and_leaves_the_rest(trained_bundle: Bundles) -> None:
    settings = Settings(steps=25, guidance=4.0, strength=1.0)
    right = shares(trained_bundle("demo-inpaint", "fp32"), "inpainting", settings, 24)
    assert right["shows it"] >= 0.9
    assert right["the rest stays"] >= 0.9


def test_depth_keeps_the_layout(trained_bundle: Bundles) -> None:
    settings = Settings(steps=25, guidance=4.0, strength=1.0)
    right = shares(trained_bundle("demo-depth", "fp32"), "depth", settings, 16)
    assert right["depth"] >= 0.95
    assert right["overlap"] >= 0.8


def test_the_upscaler_is_nearer_to_the_truth_than_bicubic_interpolation(trained_bundle: Bundles) -> None:
    settings = Settings(steps=25, guidance=1.0, noise_level=20)
    right = shares(trained_bundle("demo-x4", "fp32"), "upscaler", settings, 16)
    assert right["PSNR, dB"] >= right["PSNR of bicubic, dB"] + 0.5
