from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.images.depth_map import depth_condition, load_depth, save_depth


def noise(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def gray16(height: int = 9, width: int = 7) -> Any:
    return np.random.default_rng(0).integers(0, 0x10000, (height, width), np.uint16)


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        load_depth(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(depth: Any, expected: Any) -> None:
    assert depth.dtype == np.float32
    assert depth.shape == expected.shape
    np.testing.assert_array_equal(depth, expected)


def test_16_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(gray16())
    path = tmp_path / "depth.png"
    image.save(path)
    same(load_depth(path), gray16())
    same(load_depth(image), gray16())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    same(load_depth("-"), gray16())


def test_other_gray_images() -> None:
    bits = (gray16() >> 8).astype(np.uint8)
    gray = Image.fromarray(bits)
    for mode in ("L", "RGB", "P", "I", "F"):
        same(load_depth(gray.convert(mode)), bits)
    same(load_depth(Image.fromarray(noise(9, 7))), noise(9, 7))
    big = Image.frombytes("I;16B", (7, 9), gray16().astype(">u2").tobytes())
    same(load_depth(big), gray16())


def test_images_that_are_none(tmp_path: Path) -> None:
    coloured = Image.new("RGB", (4, 4), (7, 7, 8))
    remedy = "is coloured, but depth maps are gray: use an 8-bit or 16-bit gray image"
    assert refusal(coloured) == f"the depth map {remedy}"
    path = tmp_path / "depth.png"
    coloured.save(path)
    assert refusal(path) == f"{path} {remedy}"
    for mode in ("RGBA", "LA"):
        assert refusal(Image.new(mode, (4, 4))) == (
            "the depth map has an alpha channel, which depth maps cannot have: save it as plain gray"
        )
    assert refusal(Image.new("L", (4, 4)), max_pixels=15) == (
        "the depth map is 4x4 pixels, more than the limit of 15: use a smaller one"
    )
    assert refusal(tmp_path / "none.png").endswith(
        "(No such file or directory): use a PNG, JPEG, WebP, AVIF, BMP or TIFF file"
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8, np.uint16, np.int64])
def test_arrays(dtype: Any) -> None:
    values = (noise(5, 6) * 50).astype(dtype)
    same(load_depth(values), values.astype(np.float32))
    same(load_depth(values[None]), values.astype(np.float32))


def test_tensor() -> None:
    tensor: Any = torch.from_numpy(noise(1, 5, 6))
    same(load_depth(tensor), noise(5, 6))


def test_given_array_is_not_returned() -> None:
    given = noise(5, 6)
    load_depth(given)[:] = 0
    same(given, noise(5, 6))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 4, 4), np.float32),
        np.zeros((1, 1, 4, 4), np.float32),
        np.zeros(4, np.float32),
        np.zeros((), np.float32),
        np.zeros((4, 4), complex),
        np.zeros((4, 4), bool),
        np.zeros((4, 4), object),
    ],
)
def test_other_arrays(array: Any) -> None:
    assert refusal(array) == (
        f"the depth map is an array {array.dtype}{list(array.shape)}: use numbers of shape [H, W] or [1, H, W]"
    )


@pytest.mark.parametrize("shape", [(0, 4), (1, 0, 4)])
def test_no_values(shape: tuple[int, ...]) -> None:
    assert refusal(np.zeros(shape)) == "the depth map is 4x0 pixels: both sides must be at least 1"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e31, 1e300])
def test_values_that_are_not_finite(bad: float) -> None:
    values = np.zeros((3, 4))
    values[1, 2] = bad
    assert refusal(values) == (
        "the depth map (float64[3, 4]) has values that are not finite, or larger than 1e+30: use finite numbers"
    )
    if abs(bad) != 1e300:
        assert refusal(Image.fromarray(values.astype(np.float32))).startswith("the depth map (float32[3, 4])")


def of_diffusers(depth: Any, height: int, width: int) -> Any:
    """As in StableDiffusionDepth2ImgPipeline.prepare_depth_map, 0.42."""
    depth_map = torch.nn.functional.interpolate(
        torch.from_numpy(depth)[None, None], size=(height, width), mode="bicubic", align_corners=False
    )
    low = torch.amin(depth_map, dim=[1, 2, 3], keepdim=True)
    high = torch.amax(depth_map, dim=[1, 2, 3], keepdim=True)
    return (2.0 * (depth_map - low) / (high - low) - 1.0)[0].numpy()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 200), st.integers(2, 200), st.integers(2, 40), st.integers(2, 40))
def test_condition(height: int, width: int, to_height: int, to_width: int) -> None:
    depth = noise(height, width) * 300 + 700
    actual = depth_condition(depth, to_height, to_width)
    assert actual.dtype == np.float32
    assert actual.shape == (1, to_height, to_width)
    assert (actual.min(), actual.max()) == (-1, 1)
    np.testing.assert_allclose(actual, of_diffusers(depth, to_height, to_width), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(384, 384), (512, 512), (64, 64), (768, 512)])
def test_condition_of_whole_ratios(size: tuple[int, int]) -> None:
    depth = noise(*size) * 300 + 700
    actual = depth_condition(depth, 64, 64)
    np.testing.assert_allclose(actual, of_diffusers(depth, 64, 64), rtol=0, atol=2e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e30])
def test_condition_of_a_constant_map(value: float) -> None:
    for shape in ((48, 56), (50, 33), (1, 1)):
        flat = np.full(shape, value, np.float32)
        same(depth_condition(flat, 6, 7), np.zeros((1, 6, 7)))


def test_condition_of_a_map_that_becomes_constant() -> None:
    """The map varies only between the sampled pixels: dividing by the range would divide by zero."""
    depth = np.zeros((64, 64), np.float32)
    depth[::8, ::8] = 1
    same(depth_condition(depth, 8, 8), np.zeros((1, 8, 8)))


def test_saved_depth(tmp_path: Path) -> None:
    depth = noise(9, 7)
    path = tmp_path / "depth.png"
    for _ in range(2):
        save_depth(depth, path)
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "I;16", (7, 9))
        values = load_depth(path)
        assert (values.min(), values.max()) == (0, 65535)
        wide = depth.astype(np.float64)
        exact = (wide - wide.min()) / (wide.max() - wide.min()) * 65535
        np.testing.assert_array_equal(values, exact.round())
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_allclose(
        depth_condition(values, 9, 7), depth_condition(depth, 9, 7), rtol=0, atol=2 / 65535
    )


def test_saved_constant_depth(tmp_path: Path) -> None:
    save_depth(np.full((4, 4), 3, np.float32), tmp_path / "depth.png")
    same(load_depth(tmp_path / "depth.png"), np.zeros((4, 4)))


def test_saving_fails_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "depth.png"
    save_depth(noise(9, 7), path)
    before = path.read_bytes()

    def full(self: Image.Image, file: Path, **options: Any) -> None:
        Path(file).write_bytes(b"begun")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_depth(noise(5, 5), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
