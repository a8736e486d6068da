"""Blurred masks against OpenCV's values, and against SciPy's exact Gaussian."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from sd2rt.runtime.images.mask_blur import blurred, kernel

EDGE = [0] * 20 + [255] * 20
BARS = [0, 0, 200, 200, 200, 0, 0, 0, 0, 255, 0, 0]
# fmt: off
OPENCV = [
    (EDGE, 1.0, [*[0] * 17, 1, 15, 77, 178, 240, 254, *[255] * 17]),
    (EDGE, 4.0, [*[0] * 10, 1, 3, 7, 12, 21, 32, 48, 67, 90, 115, 140, 165, 188, 207, 223, 234, 243, 248, 252, 254,
                 *[255] * 10]),
    (EDGE, 7.5, [0, 1, 1, 2, 4, 6, 8, 11, 15, 20, 25, 32, 40, 49, 59, 70, 82, 94, 108, 121, 134, 147, 161, 173, 185,
                 196, 206, 215, 223, 230, 235, 240, 244, 247, 249, 251, 253, 254, 254, 255]),
    (BARS, 2.0, [86, 93, 107, 113, 102, 80, 60, 51, 54, 60, 62, 62]),
    (BARS, 9.0, [78, 77, 79, 80, 79, 78, 78, 76, 75, 78, 77, 77]),
]
"""Rows, deviations, and results of OpenCV 5.0.0: a Gaussian of 2 floor(2.5 s + 0.5) + 1 pixels."""
# fmt: on


@pytest.mark.parametrize(("row", "deviation", "expected"), OPENCV)
def test_opencv(row: list[int], deviation: float, expected: list[int]) -> None:
    mask = np.array([row, row[::-1]], np.uint8)
    found = blurred(mask, deviation, 0.0)
    assert found.tolist() == [expected, expected[::-1]]
    assert np.array_equal(blurred(mask.T, 0.0, deviation), found.T)


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (1, 70), (70, 1), (257, 513)])
@pytest.mark.parametrize(("across", "down"), [(4.0, 4.0), (0.0, 9.0), (30.5, 0.0), (1.0, 64.0)])
def test_scipy(shape: tuple[int, int], across: float, down: float) -> None:
    random = np.random.default_rng(0)
    mask = np.where(random.random(shape) < 0.02, 255, 0).astype(np.uint8)
    mask[: shape[0] // 3, : shape[1] // 3] = 200
    expected = mask.astype(np.float64)
    for axis, deviation in ((1, across), (0, down)):
        if deviation > 0:
            expected = gaussian_filter1d(expected, deviation, axis, mode="mirror", truncate=2.5)
    found = blurred(mask, across, down)
    assert found.dtype == np.uint8
    # Weights are whole 256ths.
    assert np.abs(found - expected).max() <= 8
    assert np.abs((found - expected).mean()) <= 1


@pytest.mark.parametrize("deviation", [0.3, 1.0, 4.0, 33.3, 64.0, 256.0])
def test_weights(deviation: float) -> None:
    weights = kernel(deviation)
    assert weights.sum() == 256
    assert weights.min() >= 0
    assert np.array_equal(weights, weights[::-1])
    assert len(weights) == 2 * int(2.5 * deviation + 0.5) + 1


def test_no_blur_is_no_change() -> None:
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(blurred(mask, 0.0, 0.0), mask)


def test_white_stays_white() -> None:
    assert (blurred(np.full((300, 70), 255, np.uint8), 17.0, 80.0) == 255).all()
