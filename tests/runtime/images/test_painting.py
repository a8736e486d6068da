"""Inpainting around a model, against AUTOMATIC1111's rule computed with NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.images.mask_blur import blurred
from sd2rt.runtime.images.painting import Painting, drawn_mask, filled
from sd2rt.runtime.images.preparation import Preparation

LANCZOS = Image.Resampling.LANCZOS


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), LANCZOS)


def mask_of(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask


def soft(mask: Image.Image, blur: float) -> NDArray[np.float64]:
    # Compared with OpenCV and SciPy in test_mask_blur.py.
    return blurred(np.asarray(mask), blur, blur).astype(np.float64)


@pytest.mark.parametrize(
    ("box", "padding", "area"),
    [
        # A square of 40 pixels, 10 of blur and 16 of padding around it; then the second side grows.
        ((100, 60, 140, 100), 16, (74, 34, 166, 126)),
        ((100, 60, 180, 80), 0, (90, 20, 190, 120)),
        # At the edges the area moves inwards.
        ((0, 0, 80, 20), 0, (0, 0, 90, 90)),
        ((200, 150, 240, 160), 8, (182, 102, 240, 160)),
    ],
)
def test_only_masked(box: tuple[int, int, int, int], padding: int, area: tuple[int, int, int, int]) -> None:
    image, mask = photo(240, 160), mask_of(240, 160, box)
    settings = Preparation(mask_blur=(4.0, 4.0), only_masked=True, padding=padding)
    painting = Painting(image, mask, 128, 128, settings)
    assert painting.area is not None
    assert painting.area.box == area
    assert painting.image.size == painting.mask.size == (128, 128)  # type: ignore[union-attr]
    if area[2] - area[0] == area[3] - area[1]:
        crop = image.crop(area).resize((128, 128), LANCZOS)
        assert np.array_equal(np.asarray(painting.image), np.asarray(crop))
    result = photo(128, 128, seed=1)
    finished = np.asarray(painting.finish(result), np.float64)
    weights = soft(mask, 4.0)[:, :, None] / 255
    whole = np.asarray(image, np.float64).copy()
    left, top, right, bottom = area
    whole[top:bottom, left:right] = np.asarray(result.resize((right - left, bottom - top), LANCZOS))
    expected = np.asarray(image) * (1 - weights) + whole * weights
    assert finished.shape == (160, 240, 3)
    assert np.abs(finished - expected).max() <= 2
    outside = np.broadcast_to(weights == 0, expected.shape)
    assert np.array_equal(finished[outside], np.asarray(image, np.float64)[outside])


def test_whole_picture() -> None:
    """The mask's blur counts twice: all that the model repaints has full weight."""
    image, mask = photo(128, 128), mask_of(128, 128, (40, 30, 90, 80))
    painting = Painting(image, mask, 128, 128, Preparation(mask_blur=(4.0, 4.0)))
    assert painting.area is None
    assert np.array_equal(np.asarray(painting.image), np.asarray(image))
    result = photo(128, 128, seed=1)
    weights = np.clip(2 * soft(mask, 4.0), 0, 255)[:, :, None] / 255
    expected = np.asarray(image) * (1 - weights) + np.asarray(result) * weights
    assert np.abs(np.asarray(painting.finish(result), np.float64) - expected).max() <= 2


def test_an_inverted_mask_keeps_what_is_white() -> None:
    image, mask = photo(64, 64), mask_of(64, 64, (0, 0, 32, 64))
    painting = Painting(image, mask, 64, 64, Preparation(invert_mask=True))
    result = photo(64, 64, seed=1)
    finished = np.asarray(painting.finish(result))
    assert np.array_equal(finished[:, :32], np.asarray(image)[:, :32])
    assert np.array_equal(finished[:, 32:], np.asarray(result)[:, 32:])


def test_an_image_without_a_mask_is_only_resized() -> None:
    image, result = photo(128, 64), photo(64, 64, seed=1)
    painting = Painting(image, None, 64, 64, Preparation(resize_mode="crop"))
    assert np.array_equal(np.asarray(painting.image), np.asarray(image.crop((32, 0, 96, 64))))
    assert painting.finish(result) is result


def test_masked_pixels_are_filled_from_around() -> None:
    image = Image.new("RGB", (64, 64), (200, 40, 40))
    image.paste((0, 0, 255), (24, 24, 40, 40))
    without = np.asarray(filled(image, mask_of(64, 64, (24, 24, 40, 40))), np.int64)
    assert np.abs(without - (200, 40, 40)).max() <= 8
    painting = Painting(image, mask_of(64, 64, (24, 24, 40, 40)), 64, 64, Preparation(fill_masked=True))
    assert np.array_equal(np.asarray(painting.image), without)


@pytest.mark.parametrize(
    ("mask", "words"),
    [(Image.new("L", (64, 64)), "black"), (Image.new("L", (64, 32), 255), "same size")],
)
def test_masks_that_cannot_be_used(mask: Image.Image, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Painting(photo(64, 64), mask, 64, 64, Preparation(only_masked=True))


def test_drawn_masks() -> None:
    """Brightness, or opacity if any pixel is not opaque."""
    gray = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert np.array_equal(np.asarray(drawn_mask(gray)), np.asarray(gray))
    opaque = gray.convert("RGBA")
    assert np.array_equal(np.asarray(drawn_mask(opaque)), np.asarray(gray))
    opaque.putalpha(gray)
    assert np.array_equal(np.asarray(drawn_mask(opaque)), np.where(np.asarray(gray) > 128, 255, 0))
