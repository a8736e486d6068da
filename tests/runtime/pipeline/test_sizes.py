"""Images in multiples of 8 pixels; bundles of earlier versions, which take multiples of 64, say so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd2rt.engines.bundle.manifest import read_manifest
from sd2rt.engines.errors import RequestError
from sd2rt.engines.tensorrt.compile.profiles import Shapes, plan_engines
from sd2rt.runtime import Pipeline, Request

FAST: dict[str, Any] = {"seed": 3, "num_inference_steps": 2, "output_type": "np"}


@pytest.fixture(scope="module")
def pipe(small_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(small_bundle, threads=1) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def earlier(earlier_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(earlier_bundle, threads=1) as pipeline:
        yield pipeline


def test_a_batch_that_mixes_sizes(pipe: Pipeline) -> None:
    sizes = [(72, 64), (64, 64), (72, 64), (64, 72), (136, 120)]
    requests = [
        Request(prompt=f"fog {index}", width=width, height=height, **FAST)
        for index, (width, height) in enumerate(sizes)
    ]
    for (width, height), request, output in zip(sizes, requests, pipe.generate(requests), strict=True):
        assert output.images.shape == (1, height, width, 3)
        np.testing.assert_allclose(output.images, pipe.generate([request])[0].images, atol=2e-5)


def test_a_picture_at_multiples_of_64_is_that_of_an_earlier_bundle(pipe: Pipeline, earlier: Pipeline) -> None:
    options = {**FAST, "width": 128, "height": 64}
    assert np.array_equal(pipe("a fox", **options).images, earlier("a fox", **options).images)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"width": 520}, "width 520 is not a multiple of 64 from 64 to 4096: use 512 or 576"),
        ({"width": 64, "height": 72}, "height 72 is not a multiple of 64 from 64 to 4096: use 64 or 128"),
    ],
)
def test_an_earlier_bundle_takes_multiples_of_64(earlier: Pipeline, size: Any, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        earlier("a fox", **FAST, **size)
    whole = (size.get("width", 64), size.get("height", 64))
    with pytest.raises(RequestError, match=re.escape(message)):
        earlier.warm_up(sizes=[whole])
    manifest = earlier.manifest
    with pytest.raises(RequestError, match=re.escape(message)):
        plan_engines(manifest, tuple(manifest.parts), Shapes(sizes=(whole,)))


def test_engines_for_multiples_of_8(pipe: Pipeline) -> None:
    manifest = pipe.manifest
    plans = plan_engines(manifest, ("denoiser", "decoder"), Shapes(sizes=((904, 600),)))
    assert [plan.profiles[0].dims["h"] for plan in plans] == [(75, 75, 75)] * 2
    assert [plan.profiles[0].dims["w"] for plan in plans] == [(113, 113, 113)] * 2
    tiled = plan_engines(manifest, ("denoiser", "tiled_decoder"), Shapes(sizes=((1032, 600),)))
    assert [plan.profiles[0].dims["w"] for plan in tiled] == [(129, 129, 129), (128, 128, 128)]
    assert [plan.profiles[0].dims["h"] for plan in tiled] == [(75, 75, 75)] * 2


@pytest.mark.parametrize(
    ("fixture", "size", "multiple"), [("pipe", (200, 120), 8), ("earlier", (192, 64), 64)]
)
def test_an_image_is_fitted_to_what_the_bundle_takes(
    request: pytest.FixtureRequest, fixture: str, size: tuple[int, int], multiple: int
) -> None:
    image = Image.new("RGB", (203, 127), "teal")
    with pytest.warns(UserWarning, match=rf"resized to {size[0]}x{size[1]}, .* multiples of {multiple}$"):
        output = request.getfixturevalue(fixture)("a fox", image=image, strength=0.6, **FAST)
    assert output.images.shape == (1, size[1], size[0], 3)


def test_previews(pipe: Pipeline) -> None:
    with pipe.stream("a fox", width=136, height=120, **FAST) as run:
        assert len(run.jobs[0][0].trajectories) == 1
        for progress in run:
            assert progress.latents().shape == (1, 4, 15, 17)
            assert pipe.preview(progress.latents())[0].size == (17, 15)


def test_an_upscaler_takes_images_as_they_are(small_upscaler_bundle: Path) -> None:
    assert read_manifest(small_upscaler_bundle).latents.sides(width=4 * 17, height=4 * 15) == (15, 17)
    # The second is larger than a tile in both directions.
    for width, height in ((17, 15), (41, 35), (1, 1)):
        with Pipeline.open(small_upscaler_bundle, threads=1, tile=32) as upscaler:
            image = Image.new("RGB", (width, height), "teal")
            output = upscaler("a fox", image=image, **FAST)
        assert output.images.shape == (1, 4 * height, 4 * width, 3)


def test_an_image_larger_than_a_tile(pipe: Pipeline, small_bundle: Path) -> None:
    options = {**FAST, "width": 328, "height": 264}
    with Pipeline.open(small_bundle, threads=1, tile=32) as tiled:
        ours = tiled("a fox", **options).images
    expected = pipe("a fox", **options).images
    assert ours.shape == expected.shape == (1, 264, 328, 3)
    assert np.abs(ours - expected).mean() < 2e-3
