from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.images.mask import extent_note, load_mask, mask_values, transparent_repainted


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


def test_values_of_0_and_1(tmp_path: Path) -> None:
    """They would be black, whatever holds them."""
    ones = (noise(9, 7) > 99).astype(np.uint8)
    assert refusal(ones) == "the mask is a uint8 array of 0 and 1: use bool, or 0 and 255"
    assert refusal((ones / 255).astype(np.float32)).startswith("the mask has floats up to 1/255: ")
    path = tmp_path / "mask.png"
    for image in (
        Image.fromarray(ones),
        Image.fromarray(np.stack([ones] * 3, 2)),
        Image.fromarray(np.stack([ones, np.full_like(ones, 255)], 2), "LA"),
    ):
        image.save(path)
        assert refusal(path) == f"{path} holds only 0 and 1 of 255: use 0 and 255"
        assert refusal(image) == "the mask holds only 0 and 1 of 255: use 0 and 255"
    for largest in (1, 128, 255):
        Image.fromarray(ones.astype(np.uint16) * largest).save(path)
        assert refusal(path).startswith(f"{path} has values up to {largest} of 65535, which are black: ")
    alpha = Image.fromarray(np.stack([noise(9, 7), ones], 2), "LA")
    assert refusal(alpha) == "the mask has an alpha channel of only 0 and 1 of 255: use 0 and 255"
    # Indices into a palette are not values.
    palette = Image.fromarray(ones).convert("P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    same(load_mask(palette), "L", ones * 255)


@pytest.mark.parametrize(
    ("colours", "message"),
    [
        # Brightness 76 and 29: nothing; 226 and 255: everything.
        (("red", "black"), "nothing would be repainted"),
        (("red", "blue"), "nothing would be repainted"),
        (("yellow", "white"), "everything would be repainted"),
    ],
)
def test_colours_that_brightness_does_not_divide(colours: tuple[str, str], message: str) -> None:
    mask = Image.new("RGB", (40, 40), colours[0])
    mask.paste(colours[1], (10, 10, 30, 30))
    for image in (mask, mask.convert("P"), mask.convert("RGBA")):
        assert f"has colours, and by its brightness {message}" in refusal(image)


@pytest.mark.parametrize(("bright", "dark"), [("yellow", "blue"), ("white", "red"), ("lime", "black")])
def test_colours_are_warned_of(bright: str, dark: str) -> None:
    mask = Image.new("RGB", (40, 40), dark)
    mask.paste(bright, (10, 10, 30, 30))
    with pytest.warns(
        UserWarning, match=r"^the mask has colours: what is brighter than half of white is repainted"
    ):
        loaded = load_mask(mask)
    expected = np.zeros((40, 40), np.float32)
    expected[10:30, 10:30] = 1
    np.testing.assert_array_equal(mask_values(loaded, 40, 40)[0], expected)


def read(image: Image.Image) -> tuple[Any, str]:
    """Mask of 0 and 1 of a picture, and the warning about it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mask = load_mask(image)
    return mask_values(mask, *image.size)[0], "; ".join(str(each.message) for each in caught)


@st.composite
def layers(draw: st.DrawFn) -> tuple[Any, Any]:
    """A region of a picture that leaves most of its border out, as bool, and a photograph of that size."""
    width, height = draw(st.integers(16, 80)), draw(st.integers(16, 80))
    region = np.zeros((height, width), bool)
    for _ in range(draw(st.integers(1, 3))):
        left, top = draw(st.integers(1, width - 4)), draw(st.integers(1, height - 4))
        region[
            top : draw(st.integers(top + 2, height - 1)), left : draw(st.integers(left + 2, width - 1))
        ] = True
    return region, np.random.default_rng(draw(st.integers(0, 99))).integers(
        0, 256, (height, width, 3), np.uint8
    )


def with_alpha(colours: Any, alpha: Any) -> Image.Image:
    return Image.fromarray(np.concatenate([colours, alpha[..., None]], 2).astype(np.uint8), "RGBA")


LAYER = "the mask is a transparent layer: the paint on it is repainted; use a mask without transparency, "
HOLES = "the mask has transparent areas: these are repainted, as in OpenAI's API; use a mask without transparency, "
BLACK_AND_WHITE = (
    "the mask is black and white with transparent areas: its white is repainted, the rest is kept; "
)


@given(
    layers(),
    st.sampled_from(
        [(255, 255, 255), (254, 250, 255), (255, 0, 0), (139, 0, 0), (0, 255, 0), (200, 200, 200)]
    ),
    st.sampled_from([255, 200, 100, 40]),
    st.booleans(),
)
def test_strokes_on_a_transparent_layer(layer: Any, colour: Any, opacity: int, hidden: bool) -> None:
    """Whatever their colour, opacity, and colours under transparent pixels."""
    region, photo = layer
    colours = np.where(region[..., None], np.array(colour), photo if hidden else 0)
    values, warning = read(with_alpha(colours, region * opacity))
    np.testing.assert_array_equal(values, region)
    assert warning.startswith(LAYER)


@given(layers(), st.sampled_from(["photo", "white", "black", "red", "gray"]))
def test_areas_erased_from_a_picture(layer: Any, kind: str) -> None:
    """OpenAI's masks: a photograph, or one colour, with transparent holes."""
    region, photo = layer
    colours = photo if kind == "photo" else np.broadcast_to(ImageColor.getrgb(kind), photo.shape)
    values, warning = read(with_alpha(colours, ~region * 255))
    np.testing.assert_array_equal(values, region)
    assert warning.startswith(HOLES)


@given(layers())
def test_an_object_without_its_background(layer: Any) -> None:
    region, photo = layer
    values, warning = read(with_alpha(photo, region * 255))
    np.testing.assert_array_equal(values, ~region)
    assert warning.startswith(HOLES)


@given(layers(), layers())
def test_black_and_white_with_transparent_areas(first: Any, second: Any) -> None:
    (region, _), (other, _) = first, second
    height, width = (min(a, b) for a, b in zip(region.shape, other.shape, strict=True))
    white, shown = region[:height, :width], ~other[:height, :width]
    parts = ((white & shown).sum(), (~white & shown).sum())
    assume(min(parts) > 0.02 * sum(parts) and not shown.all())
    colours = np.repeat((white * 255)[..., None], 3, 2)
    values, warning = read(with_alpha(colours, shown * 255))
    np.testing.assert_array_equal(values, white & shown)
    assert warning.startswith(BLACK_AND_WHITE)


@given(layers(), st.integers(128, 254))
def test_slight_transparency(layer: Any, opacity: int) -> None:
    """Half or more is opaque: brightness is the mask."""
    region, _ = layer
    colours = np.repeat((region * 255)[..., None], 3, 2)
    values, warning = read(with_alpha(colours, np.full(region.shape, opacity)))
    np.testing.assert_array_equal(values, region)
    assert warning == ""
    values, warning = read(with_alpha(colours, np.where(region, opacity, 255)))
    np.testing.assert_array_equal(values, region)
    assert warning == "the mask is nowhere transparent by more than half: its brightness is the mask"


def test_all_of_it_transparent() -> None:
    values, warning = read(Image.new("RGBA", (32, 32), (0, 0, 0, 0)))
    assert values.all()
    assert warning.startswith(HOLES)


def test_extent() -> None:
    half = np.zeros((1, 4, 4), np.float32)
    half[0, 0] = 1
    assert extent_note(half) is None
    assert extent_note(half * 0) == "the mask repaints nothing: white is repainted, black is kept"
    assert extent_note(half * 0 + 1) == "the mask repaints everything: white is repainted, black is kept"


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_by_the_rule_of_openai(mode: str) -> None:
    """Any transparent pixel decides, also on layers that would else be read as paint."""
    strokes = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    strokes.paste((255, 255, 255, 255), (8, 8, 24, 24))
    given = transparent_repainted(strokes.convert(mode))
    same(given, "L", 255 - np.asarray(strokes)[..., 3])
    opaque = Image.new(mode, (4, 4), "white")
    assert transparent_repainted(opaque) is opaque


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
    # Colours must be divided by their brightness, see above.
    assume(mode == "L" or 0 < (np.asarray(given.convert("L")) >= 128).mean() < 1)
    expected = PROCESSOR.preprocess(given, height=to_height, width=to_width)[0].numpy()
    actual = mask_values(load_mask(given), to_width, to_height)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, expected)


def test_every_gray_of_a_mask() -> None:
    every = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(8, 32))
    np.testing.assert_array_equal(mask_values(every, 32, 8)[0], np.arange(256).reshape(8, 32) >= 128)
