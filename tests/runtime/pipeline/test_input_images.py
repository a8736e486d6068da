"""Images of other aspect ratios, and the masked area alone: bit-equal to images that are prepared by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd2rt.engines.errors import RequestError
from sd2rt.runtime import Pipeline
from sd2rt.runtime.images.paste import paste
from sd2rt.runtime.images.resize_modes import fit
from sd2rt.runtime.pipeline.conditioning import size_of
from sd2rt.runtime.request.request import make_request

PIXELS = np.kron(
    np.random.default_rng(5).integers(0, 256, (9, 21, 3), np.uint8), np.ones((10, 10, 1), np.uint8)
)
WIDE = Image.fromarray(PIXELS)
"""210x90 pixels."""
BOX = (120, 20, 150, 60)
COMMON: dict[str, Any] = {"num_inference_steps": 3, "seed": 2, "width": 64, "height": 64, "output_type": "np"}


def box_mask(mode: str = "L") -> Image.Image:
    mask = Image.new("L", WIDE.size, "black")
    mask.paste("white", BOX)
    return mask.convert(mode)


@pytest.fixture(scope="module", params=["small_bundle", "small_inpainting_bundle"])
def painter(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    with Pipeline.open(request.getfixturevalue(request.param), threads=1) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def pipe(small_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(small_bundle, threads=1) as pipeline:
        yield pipeline


@pytest.mark.parametrize("mode", ["crop", "fill"])
def test_resize_modes(pipe: Pipeline, mode: Any) -> None:
    ours = pipe("a fox", image=WIDE, resize_mode=mode, strength=0.7, **COMMON).images
    by_hand = pipe("a fox", image=fit(WIDE, 64, 64, mode), strength=0.7, **COMMON).images
    stretched = pipe("a fox", image=WIDE, strength=0.7, **COMMON).images
    np.testing.assert_array_equal(ours, by_hand)
    assert np.abs(ours - stretched).max() > 0.01


@pytest.mark.parametrize("mode", ["crop", "fill"])
def test_masks_are_fitted_with_their_image(painter: Pipeline, mode: Any) -> None:
    options = {**COMMON, "strength": 0.8, "paste": True, "paste_blur": 1.0}
    mask = Image.new("L", WIDE.size, "black")
    mask.paste("white", (80, 0, 130, 70))
    ours = painter("a fox", image=WIDE, mask_image=mask, resize_mode=mode, **options).images
    image, fitted = (fit(each, 64, 64, mode) for each in (WIDE, mask))
    by_hand = painter("a fox", image=image, mask_image=fitted, **options).images
    np.testing.assert_array_equal(ours, by_hand)


@pytest.mark.parametrize("given", ["array", "estimated"])
def test_depth_is_fitted_with_its_image(small_depth_bundle: Path, given: str) -> None:
    ramp = np.linspace(0, 1, 90 * 210, dtype=np.float32).reshape(90, 210)
    with Pipeline.open(small_depth_bundle, threads=1) as pipeline:
        depth: dict[str, Any] = {"depth_map": ramp} if given == "array" else {}
        ours = pipeline("a fox", image=WIDE, resize_mode="crop", strength=0.7, **depth, **COMMON).images
        if depth:
            depth = {"depth_map": np.asarray(fit(Image.fromarray(ramp), 64, 64, "crop"))}
        by_hand = pipeline("a fox", image=fit(WIDE, 64, 64, "crop"), strength=0.7, **depth, **COMMON).images
    np.testing.assert_array_equal(ours, by_hand)


@pytest.mark.parametrize("mask_mode", ["L", "RGB"])
@pytest.mark.parametrize("padding", [0, 12])
def test_only_masked(painter: Pipeline, padding: int, mask_mode: str) -> None:
    mask = box_mask(mask_mode)
    ours = painter(
        "a fox", image=WIDE, mask_image=mask, only_masked=True, mask_padding=padding, paste_blur=2.0, **COMMON
    ).images[0]
    # The box is 30x40 pixels: padded, and as wide as it is high.
    left, top, right, bottom = 120 - padding, 20 - padding, 150 + padding, 60 + padding
    left, right = left - 5, right + 5
    crops = [
        image.crop((left, top, right, bottom)).resize((64, 64), 1) for image in (WIDE, mask.convert("L"))
    ]
    painted = painter("a fox", image=crops[0], mask_image=crops[1], **COMMON).images[0]
    small = Image.fromarray((painted * 255).round().astype(np.uint8))
    whole = np.asarray(WIDE, np.float32) / np.float32(255)
    result = whole.copy()
    side = right - left
    result[top:bottom, left:right] = np.asarray(small.resize((side, side), 1), np.float32) / np.float32(255)
    expected = paste(whole, result, (np.asarray(mask.convert("L")) > 127)[None].astype(np.float32), 2.0)
    assert ours.shape == (90, 210, 3)
    np.testing.assert_array_equal(ours, expected)
    outside = np.asarray(mask.convert("L")) == 0
    np.testing.assert_array_equal(ours[outside], whole[outside])
    assert np.abs(ours[30:50, 130:140] - whole[30:50, 130:140]).max() > 0.05


def test_the_area_is_painted_at_the_bundles_size(painter: Pipeline) -> None:
    large = Image.new("RGB", (640, 320), "gray")
    mask = np.zeros((320, 640), np.bool_)
    mask[10:40, 10:60] = True
    request = make_request(prompt="a", image=large, mask_image=mask, only_masked=True)
    assert size_of(painter.manifest, request) == painter.manifest.native_sizes[0]


def test_requests_that_share_an_image_do_not_share_its_crop(painter: Pipeline) -> None:
    """The encoder's results are kept by image."""
    other = Image.new("L", WIDE.size, "black")
    other.paste("white", (10, 10, 60, 60))
    options: dict[str, Any] = {**COMMON, "image": WIDE, "only_masked": True}
    requests = [
        make_request(prompt="a", **options, mask_image=mask, mask_padding=padding)
        for mask, padding in ((box_mask(), 0), (other, 0), (other, 9))
    ]
    together = [output.images for output in painter.generate(requests)]
    for request, images in zip(requests, together, strict=True):
        (alone,) = painter.generate([request])
        assert np.abs(images - alone.images).max() < 1e-4
    assert np.abs(together[1] - together[2]).max() > 0.01


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize_mode": "crop"}, "image-to-image with .* also needs image"),
        ({"image": WIDE, "only_masked": True}, "also needs mask"),
        (
            {"image": WIDE, "mask_image": box_mask(), "only_masked": True, "output_type": "latent"},
            "only_masked needs pixels",
        ),
        (
            {"image": WIDE, "mask_image": box_mask(), "only_masked": True, "resize_mode": "fill"},
            "only_masked keeps the aspect ratio by itself: leave resize_mode out",
        ),
        (
            {"image": WIDE, "mask_image": Image.new("L", WIDE.size), "only_masked": True},
            "the mask is black, so nothing is repainted",
        ),
        ({"image": WIDE, "resize_mode": "cover"}, "resize_mode is .*cover"),
        ({"image": WIDE, "mask_image": box_mask(), "mask_padding": -1}, "mask_padding is -1"),
    ],
)
def test_refusals(pipe: Pipeline, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        pipe("a", **{**COMMON, **fields})
