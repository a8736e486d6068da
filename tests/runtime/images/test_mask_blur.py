"""Blurred masks against SciPy's truncated Gaussian."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from sd2rt.runtime.images.mask_blur import blurred


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (1, 70), (70, 1), (257, 513)])
@pytest.mark.parametrize(("across", "down"), [(4.0, 4.0), (0.0, 9.0), (30.5, 0.0), (1.0, 64.0)])
def test_scipy(shape: tuple[int, int], across: float, down: float) -> None:
    random = np.random.default_rng(0)
    mask = np.where(random.random(shape) < 0.02, 255, 0).astype(np.uint8)
    mask[: shape[0] // 3, : shape[1] // 3] = 200
    expected = mask
    for axis, deviation in ((1, across), (0, down)):
        if deviation > 0:
            exact = gaussian_filter1d(
                expected.astype(np.float64), deviation, axis, mode="mirror", truncate=2.5
            )
            expected = np.floor(exact + 0.5).astype(np.uint8)
    found = blurred(mask, across, down)
    assert found.dtype == np.uint8
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    # Sums in float32 round to the other side where the exact one is at a half.
    assert np.count_nonzero(difference) <= 1e-3 * difference.size


def test_no_blur_is_no_change() -> None:
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(blurred(mask, 0.0, 0.0), mask)


def test_a_mask_reaches_two_and_a_half_deviations() -> None:
    mask = np.zeros((9, 101), np.uint8)
    mask[:, 50:] = 255
    across = np.flatnonzero(blurred(mask, 4.0, 0.0)[4])
    assert across[0] == 40
