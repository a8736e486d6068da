from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from sd2rt.runtime.images.resample import bicubic, nearest

SIDES = st.integers(1, 160)


def noise(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def of_torch(values: Any, height: int, width: int, mode: str) -> Any:
    corners = {} if mode == "nearest" else {"align_corners": False}
    four = torch.from_numpy(values)[None]
    return interpolate(four, size=(height, width), mode=mode, **corners)[0].numpy()


@settings(max_examples=150, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_nearest(height: int, width: int, to_height: int, to_width: int) -> None:
    values = noise(1, height, width)
    actual = nearest(values, to_height, to_width)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, of_torch(values, to_height, to_width, "nearest"))


def test_nearest_of_every_small_side() -> None:
    for side in range(1, 130):
        row = np.arange(side, dtype=np.float32)[None, None]
        for wanted in range(1, 130):
            expected = of_torch(row, 1, wanted, "nearest")
            np.testing.assert_array_equal(nearest(row, 1, wanted), expected)


def test_nearest_keeps_channels() -> None:
    values = noise(3, 16, 24)
    np.testing.assert_array_equal(nearest(values, 2, 3), values[:, ::8, ::8])


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((384, 384), (64, 64)),
        ((512, 768), (64, 96)),
        ((32, 48), (64, 64)),
        ((8, 8), (8, 8)),
        ((1, 1), (8, 8)),
    ],
)
def test_bicubic_of_whole_ratios(given: tuple[int, int], wanted: tuple[int, int]) -> None:
    values = noise(*given)
    actual = bicubic(values, *wanted)
    assert actual.dtype == np.float32
    expected = of_torch(values[None], *wanted, "bicubic")[0]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@settings(max_examples=150, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_bicubic(height: int, width: int, to_height: int, to_width: int) -> None:
    values = noise(height, width)
    actual = bicubic(values, to_height, to_width)
    expected = of_torch(values[None], to_height, to_width, "bicubic")[0]
    # Positions that float32 cannot hold are rounded twice on a CPU that has no fused multiply-add.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_bicubic_of_a_line_is_the_line() -> None:
    """Inside, where no tap is beyond an edge; the kernel reproduces straight lines when it is halved."""
    line = np.arange(32, dtype=np.float32)[None].repeat(32, 0)
    halved = bicubic(line, 16, 16)
    np.testing.assert_allclose(halved[:, 1:-1], np.broadcast_to(np.arange(16) * 2 + 0.5, (16, 16))[:, 1:-1])
