from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.images.init_image import fitting_size, load_image, resized, to_tensor
from sd2rt.runtime.images.read import MAX_PIXELS


def noise(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def refusal(source: Any, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(RequestError) as caught:
        load_image(source, max_pixels=max_pixels)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(image: Image.Image, expected: Any) -> None:
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_rgb_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colours = noise(24, 40, 3)
    path = saved(Image.fromarray(colours), tmp_path / "a.png")
    same(load_image(path), colours)
    same(load_image(Image.fromarray(colours)), colours)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    same(load_image("-"), colours)
    assert refusal("-") == "standard input is empty: use a PNG, JPEG, WebP, AVIF, BMP or TIFF file"


def test_given_image_is_not_returned() -> None:
    given = Image.fromarray(noise(4, 4, 3))
    load_image(given).putpixel((0, 0), (1, 2, 3))
    same(given, noise(4, 4, 3))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_is_laid_over_white(mode: str) -> None:
    rgba = noise(64, 64, 4)
    rgba[:8, :, 3], rgba[8:16, :, 3] = 0, 255
    full = Image.fromarray(rgba)
    if mode == "PA":
        full = full.convert("RGB").quantize(8).convert("PA")
        full.putalpha(Image.fromarray(rgba[..., 3]))
    given = full.convert(mode)
    assert given.mode == mode
    channels = np.asarray(given.convert("RGBA"), np.float64)
    alpha = channels[..., 3:] / 255
    image = load_image(given)
    exact = channels[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(np.asarray(image) - exact).max() <= 1
    same(image.crop((0, 0, 64, 8)), 255)
    same(image.crop((0, 8, 64, 16)), channels[8:16, :, :3])


def test_premultiplied_alpha() -> None:
    for mode in ("RGBa", "La"):
        clear = Image.new(mode, (2, 2))
        same(load_image(clear), 255)


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_files_with_alpha(kind: str, tmp_path: Path) -> None:
    rgba = noise(16, 16, 4)
    rgba[:8, :, 3], rgba[8:, :, 3] = 0, 255
    path = saved(Image.fromarray(rgba), tmp_path / f"a.{kind}", lossless=True)
    image = np.asarray(load_image(path))
    assert (image[:8] == 255).all()
    np.testing.assert_array_equal(image[8:], rgba[8:, :, :3])


def test_palettes(tmp_path: Path) -> None:
    indices = noise(16, 16) % 3
    palette = Image.fromarray(indices).convert("P")
    palette.putpalette([200, 10, 20, 30, 210, 40, 50, 60, 220])
    colours = np.array([[200, 10, 20], [30, 210, 40], [50, 60, 220]])[indices]
    same(load_image(saved(palette, tmp_path / "a.png")), colours)
    colours[indices == 1] = 255
    same(load_image(saved(palette, tmp_path / "one.png", transparency=1)), colours)
    colours[indices == 2] = (50 * 51 + 255 * 204) // 255, (60 * 51 + 255 * 204) // 255, 248
    image = load_image(saved(palette, tmp_path / "each.png", transparency=bytes([255, 0, 51])))
    same(image, colours)


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_transparent_colour(mode: str, tmp_path: Path) -> None:
    image = Image.new(mode, (4, 4))
    key = (0, 0, 0) if mode == "RGB" else 0
    image.putpixel((1, 2), 255 if mode != "RGB" else (255, 0, 0))
    expected = np.full((4, 4, 3), 255)
    expected[2, 1] = (255, 0, 0) if mode == "RGB" else 255
    same(load_image(saved(image, tmp_path / "a.png", transparency=key)), expected)


def png16(values: Any, key: int | None = None) -> bytes:
    """A 16-bit gray PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
        + (b"" if key is None else chunk(b"tRNS", struct.pack(">H", key)))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_16_bits_are_scaled(tmp_path: Path) -> None:
    values = np.arange(0x10000, dtype=np.uint16).reshape(256, 256)
    expected = np.round(values / 257).astype(np.uint8)[..., None]
    path = tmp_path / "a.png"
    path.write_bytes(png16(values))
    assert Image.open(path).mode == "I;16"
    same(load_image(path), np.broadcast_to(expected, (256, 256, 3)))
    big = Image.frombytes("I;16B", (256, 256), values.astype(">u2").tobytes())
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.int32)), big):
        assert image.mode.startswith("I")
        same(load_image(image), np.broadcast_to(expected, (256, 256, 3)))


def test_16_bits_with_a_transparent_value(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png16(np.array([[1000, 1001]]), key=1000))
    same(load_image(path), np.array([[[255] * 3, [4] * 3]]))


def test_values_of_no_known_range() -> None:
    wide = Image.fromarray(np.array([[0, 70000]], np.int32))
    assert refusal(wide) == "the image has values from 0 to 70000: use an 8-bit or 16-bit image"
    negative = Image.fromarray(np.array([[-1, 5]], np.int32))
    assert refusal(negative) == "the image has values from -1 to 5: use an 8-bit or 16-bit image"
    floats = Image.fromarray(np.ones((2, 2), np.float32))
    assert refusal(floats) == "the image has float pixels (mode F): use an 8-bit or 16-bit image"


def test_cmyk_jpeg(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    path = saved(image, tmp_path / "a.jpg", quality=100)
    assert Image.open(path).mode == "CMYK"
    assert np.abs(np.asarray(load_image(path)).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_opaque_modes(mode: str) -> None:
    given = Image.fromarray(noise(16, 16, 3)).convert(mode)
    same(load_image(given), np.asarray(given.convert("RGB")))


def test_gray_jpeg(tmp_path: Path) -> None:
    path = saved(Image.fromarray(noise(16, 16)), tmp_path / "a.jpg")
    assert Image.open(path).mode == "L"
    same(load_image(path), np.asarray(Image.open(path))[..., None].repeat(3, 2))


def test_arrays() -> None:
    same(load_image(noise(5, 7, 3)), noise(5, 7, 3))
    same(load_image(noise(5, 7)), noise(5, 7)[..., None].repeat(3, 2))
    same(load_image(noise(7, 5, 3).transpose(1, 0, 2)), noise(7, 5, 3).transpose(1, 0, 2))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_rounded_to_8_bits(dtype: Any) -> None:
    values = np.linspace(0, 1, 5 * 7 * 3).reshape(5, 7, 3).astype(dtype)
    same(load_image(values), (values.astype(np.float32) * np.float32(255)).round())
    every = np.broadcast_to(np.arange(256)[None, :, None], (1, 256, 3))
    same(load_image((every / 255).astype(dtype)), every)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.001, 1.001])
def test_floats_outside(bad: float) -> None:
    values = np.full((4, 4, 3), 0.5, np.float32)
    values[1, 2, 0] = bad
    message = refusal(values)
    assert message.startswith("the image has floats from ")
    assert message.endswith(": use floats in [0, 1], or uint8")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((3, 4, 4), np.float32),
        np.zeros((1, 4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4, 3), bool),
        np.zeros((), np.uint8),
        np.zeros((4, 4, 3), object),
        torch.zeros(3, 4, 4),
    ],
)
def test_other_arrays(array: Any) -> None:
    kind = str(array.dtype).removeprefix("torch.")
    assert refusal(array) == (
        f"the image is an array {kind}{list(array.shape)}: "
        "use uint8 [H, W, 3] or [H, W], or floats [H, W, 3] in [0, 1]"
    )


def test_tensor_that_numpy_cannot_read() -> None:
    message = refusal(torch.zeros(4, 4, 3, requires_grad=True))
    assert message.startswith("the image cannot be read as an array (")
    assert message.endswith("): use a NumPy array")


def test_arrays_have_sizes_too() -> None:
    assert refusal(noise(4, 6, 3), 23) == (
        "the image is 6x4 pixels, more than the limit of 23: use a smaller one"
    )
    for dtype in (np.uint8, np.float32):
        empty = np.zeros((0, 4, 3), dtype)
        assert refusal(empty) == "the image is 4x0 pixels: both sides must be at least 1"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([64, 128, 192]), st.sampled_from([64, 128]))
def test_tensors_are_diffusers(width: int, height: int, to_width: int, to_height: int) -> None:
    image = Image.fromarray(noise(height, width, 3))
    expected = VaeImageProcessor().preprocess(image, height=to_height, width=to_width)[0].numpy()
    tensor = to_tensor(resized(image, to_width, to_height))
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    np.testing.assert_array_equal(tensor, expected)


def test_every_value_of_a_tensor() -> None:
    gray = load_image(np.arange(256, dtype=np.uint8).reshape(8, 32))
    expected = VaeImageProcessor(do_resize=False).preprocess(gray)[0].numpy()
    np.testing.assert_array_equal(to_tensor(gray), expected)
    assert (expected.min(), expected.max()) == (-1, 1)


def test_resized_to_the_same_size_is_a_copy() -> None:
    image = Image.fromarray(noise(8, 8, 3))
    copy = resized(image, 8, 8)
    copy.putpixel((0, 0), (1, 2, 3))
    same(image, noise(8, 8, 3))


@pytest.mark.parametrize(
    ("size", "fits"),
    [
        ((512, 512), (512, 512)),
        ((575, 640), (512, 640)),
        ((1, 63), (64, 64)),
        ((127, 128), (64, 128)),
        ((4096, 64), (4096, 64)),
        ((4159, 64), (4096, 64)),
    ],
)
def test_fitting_size(size: tuple[int, int], fits: tuple[int, int]) -> None:
    assert fitting_size(Image.new("L", size), 64) == fits


def test_fitting_size_in_multiples_of_8() -> None:
    assert fitting_size(Image.new("L", (575, 63)), 8) == (568, 64)


@pytest.mark.parametrize("size", [(4160, 64), (64, 5000)])
def test_no_fitting_size(size: tuple[int, int]) -> None:
    with pytest.raises(RequestError) as caught:
        fitting_size(Image.new("L", size), 8)
    assert str(caught.value) == (
        f"the image is {size[0]}x{size[1]} pixels, but a side can be at most 4096: "
        "set width and height, or use a smaller image"
    )
