from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.images.mask import load_mask, mask_values


def noise(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        load_mask(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(mask: Image.Image, mode: str, expected: Any) -> None:
    assert mask.mode == mode
    np.testing.assert_array_equal(np.asarray(mask), expected)


@pytest.mark.parametrize(("mode", "shape"), [("L", (9, 7)), ("RGB", (9, 7, 3))])
def test_gray_and_rgb_stay(
    mode: str, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = noise(*shape)
    path = tmp_path / "mask.png"
    Image.fromarray(values).save(path)
    same(load_mask(path), mode, values)
    same(load_mask(Image.fromarray(values)), mode, values)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    same(load_mask("-"), mode, values)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_is_repainted(mode: str, tmp_path: Path) -> None:
    rgba = Image.fromarray(noise(9, 7, 4)).convert(mode)
    path = tmp_path / "mask.png"
    rgba.save(path)
    for source in (path, rgba):
        same(load_mask(source), "L", 255 - noise(9, 7, 4)[..., 3])


def test_palette_with_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(noise(9, 7) % 3).convert("P")
    palette.putpalette([200, 10, 20, 30, 210, 40, 50, 60, 220])
    path = tmp_path / "mask.png"
    palette.save(path, transparency=1)
    same(load_mask(path), "L", np.where(noise(9, 7) % 3 == 1, 255, 0))


def test_opaque_alpha_says_nothing() -> None:
    rgba = noise(9, 7, 4)
    rgba[..., 3] = 255
    same(load_mask(Image.fromarray(rgba)), "RGB", rgba[..., :3])
    gray = np.stack([noise(9, 7), np.full((9, 7), 255, np.uint8)], 2)
    same(load_mask(Image.fromarray(gray)), "L", noise(9, 7))


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "HSV"])
def test_other_modes_become_gray(mode: str) -> None:
    given = Image.fromarray(noise(9, 7, 3)).convert(mode)
    same(load_mask(given), "L", np.asarray(given.convert("L")))


def test_16_bits() -> None:
    values = (noise(9, 7).astype(np.uint16) << 8) + 255
    same(load_mask(Image.fromarray(values)), "L", np.round(values / 257))


def test_mode_without_a_conversion() -> None:
    lab = Image.new("LAB", (4, 4))
    message = refusal(lab)
    assert message.startswith("the mask has mode LAB (")
    assert message.endswith("): use an RGB image")


def test_arrays() -> None:
    same(load_mask(noise(9, 7)), "L", noise(9, 7))
    same(load_mask(noise(9, 7) > 99), "L", np.where(noise(9, 7) > 99, 255, 0))
    floats = np.linspace(0, 1, 63, dtype=np.float32).reshape(9, 7)
    same(load_mask(floats), "L", (floats * 255).round())
    for nothing in (np.zeros((4, 4), np.uint8), np.zeros((4, 4), bool)):
        same(load_mask(nothing), "L", 0)


def test_half_of_white_is_repainted() -> None:
    around = np.array([[0.49, 0.499, 0.5, 0.51]])
    np.testing.assert_array_equal(mask_values(load_mask(around), 4, 1), [[[0, 0, 1, 1]]])


def test_uint8_of_0_and_1() -> None:
    assert refusal((noise(9, 7) > 99).astype(np.uint8)) == (
        "the mask is a uint8 array of 0 and 1: use bool, or 0 and 255"
    )


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((1, 4, 4), np.float32),
        np.zeros((4, 4), int),
        np.zeros(4, bool),
    ],
)
def test_other_arrays(array: Any) -> None:
    assert refusal(array) == (
        f"the mask is an array {array.dtype}{list(array.shape)}: "
        "use [H, W] of bool, uint8, or floats in [0, 1]"
    )


def test_refusals(tmp_path: Path) -> None:
    assert refusal(np.full((4, 4), np.nan)) == (
        "the mask has floats from nan to nan: use floats in [0, 1], or uint8"
    )
    assert refusal(np.full((4, 4), 255.0)) == (
        "the mask has floats from 255 to 255: use floats in [0, 1], or uint8"
    )
    assert refusal(np.zeros((4, 0), bool)) == "the mask is 0x4 pixels: both sides must be at least 1"
    too_many = "the mask is 4x4 pixels, more than the limit of 15: use a smaller one"
    assert refusal(np.zeros((4, 4), bool), max_pixels=15) == too_many
    assert refusal(Image.new("L", (4, 4)), max_pixels=15) == too_many
    path = tmp_path / "none.png"
    assert refusal(path).startswith(f"{path} cannot be read (No such file or directory)")
    assert refusal(Image.new("F", (4, 4))).startswith("the mask has float pixels (mode F)")
    assert refusal(7).startswith("the mask is of type int: use a path")


PROCESSOR = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["L", "RGB"]),
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([64, 128, 192]),
    st.sampled_from([64, 128]),
    st.booleans(),
)
def test_values_are_diffusers(
    mode: str, width: int, height: int, to_width: int, to_height: int, black_and_white: bool
) -> None:
    values = noise(height, width, 3) if mode == "RGB" else noise(height, width)
    if black_and_white:
        values = np.where(values > 127, 255, 0).astype(np.uint8)
    given = Image.fromarray(values)
    expected = PROCESSOR.preprocess(given, height=to_height, width=to_width)[0].numpy()
    actual = mask_values(load_mask(given), to_width, to_height)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, expected)


def test_every_gray_of_a_mask() -> None:
    every = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(8, 32))
    np.testing.assert_array_equal(mask_values(every, 32, 8)[0], np.arange(256).reshape(8, 32) >= 128)
