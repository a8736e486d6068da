"""The three ways to bring an image to a size, and sizes of upscaled images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sd2rt.runtime.images.preparation import Enlargement
from sd2rt.runtime.images.resize_modes import enlarged, fit

LANCZOS = Image.Resampling.LANCZOS


def picture(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))


def pixels(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(image)


def scaled(size: tuple[int, int], target: tuple[int, int], scale: float) -> tuple[int, int]:
    """One side is the target's, the other is rounded down."""
    width, height = (
        wanted if side * scale == pytest.approx(wanted) else int(side * scale + 1e-9)
        for side, wanted in zip(size, target, strict=True)
    )
    return width, height


SIZES = [(100, 60), (60, 100), (64, 64), (333, 77), (31, 400)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [(128, 128), (192, 64), (64, 192)])
def test_stretch_and_crop(size: tuple[int, int], target: tuple[int, int]) -> None:
    image = picture(*size)
    assert np.array_equal(pixels(fit(image, *target, "stretch")), pixels(image.resize(target, LANCZOS)))
    cropped = fit(image, *target, "crop")
    assert cropped.size == target
    # The scale at which the image covers the target; what exceeds it is cut off alike on both sides.
    scale = max(target[0] / size[0], target[1] / size[1])
    cover = scaled(size, target, scale)
    whole = image.resize(cover, LANCZOS)
    left, top = (cover[axis] // 2 - target[axis] // 2 for axis in (0, 1))
    expected = whole.crop((left, top, left + target[0], top + target[1]))
    assert np.array_equal(pixels(cropped), pixels(expected))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [(128, 128), (192, 64), (64, 192)])
def test_fill(size: tuple[int, int], target: tuple[int, int]) -> None:
    image = picture(*size)
    filled = pixels(fit(image, *target, "fill"))
    scale = min(target[0] / size[0], target[1] / size[1])
    inner = scaled(size, target, scale)
    left, top = (target[axis] // 2 - inner[axis] // 2 for axis in (0, 1))
    middle = filled[top : top + inner[1], left : left + inner[0]]
    assert np.array_equal(middle, pixels(image.resize(inner, LANCZOS)))
    # Each border repeats one row or column.
    for border in (filled[:top], filled[top + inner[1] : 2 * top + inner[1]]):
        assert (border == border[:1]).all()
    for border in (filled[:, :left], filled[:, left + inner[0] : 2 * left + inner[0]]):
        assert (border == border[:, :1]).all()


def test_borders_have_the_colours_of_the_edge() -> None:
    image = Image.new("RGB", (64, 16), (10, 20, 30))
    image.paste((200, 100, 50), (0, 8, 64, 16))
    filled = pixels(fit(image, 64, 64, "fill"))
    assert (filled[0] == (10, 20, 30)).all()
    assert (filled[-1] == (200, 100, 50)).all()


@pytest.mark.parametrize(
    ("wanted", "size"),
    [
        (Enlargement(), (30, 20)),
        (Enlargement(factor=4.0), (120, 80)),
        (Enlargement(factor=2.5), (75, 50)),
        (Enlargement(width=60, height=60), (60, 60)),
        (Enlargement(width=60, height=60, crop=False), (90, 60)),
    ],
)
def test_enlarged(wanted: Enlargement, size: tuple[int, int]) -> None:
    assert enlarged(picture(120, 80), (30, 20), wanted).size == size
