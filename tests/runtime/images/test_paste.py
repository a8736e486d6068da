from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sd2rt.runtime.images.paste import paste


def unit(seed: int, height: int = 128, width: int = 96) -> Any:
    return np.random.default_rng(seed).random((height, width, 3), np.float32)


def square() -> Any:
    mask = np.zeros((1, 128, 96), np.float32)
    mask[0, 16:112, 16:80] = 1
    return mask


@pytest.mark.parametrize("blur", [0, 0.5, 1, 2.5, 4, 8, 100])
def test_outside_is_exactly_the_original(blur: float) -> None:
    original, generated, mask = unit(0), unit(1), square()
    # A hole, where the blurred mask is nearly white.
    mask[0, 60:62, 40:42] = 0
    pasted = paste(original, generated, mask, blur)
    assert pasted.dtype == np.float32
    assert pasted.shape == original.shape
    np.testing.assert_array_equal(pasted[mask[0] == 0], original[mask[0] == 0])


@pytest.mark.parametrize("blur", [0, 1, 2, 4, 8])
def test_deep_inside_is_exactly_the_generated(blur: float) -> None:
    generated = unit(1)
    pasted = paste(unit(0), generated, square(), blur)
    deep = 3 * blur
    inner = np.s_[16 + deep : 112 - deep, 16 + deep : 80 - deep]
    assert pasted[inner].size > 0
    np.testing.assert_array_equal(pasted[inner], generated[inner])


def test_hard_edge() -> None:
    original, generated, mask = unit(0), unit(1), square()
    expected = np.where(mask[0, :, :, None] == 1, generated, original)
    np.testing.assert_array_equal(paste(original, generated, mask, 0), expected)


@pytest.mark.parametrize("blur", [1, 2, 4, 8])
def test_soft_edge_rises_inwards(blur: float) -> None:
    black, white = np.zeros((128, 96, 3), np.float32), np.ones((128, 96, 3), np.float32)
    weights = paste(black, white, square(), blur)[48, :40, 0]
    assert (weights[:16] == 0).all()
    assert (np.diff(weights[15:40]) >= 0).all()
    # Little at the edge itself, and strictly between for about two and a half radii.
    assert weights[16] < 0.5
    between = np.count_nonzero((weights > 0) & (weights < 1))
    assert blur <= between <= 3 * blur


def test_whole_mask_has_no_edge() -> None:
    """The border of the picture is not an edge of the mask."""
    generated = unit(1)
    whole = np.ones((1, 128, 96), np.float32)
    np.testing.assert_array_equal(paste(unit(0), generated, whole, 8), generated)


def test_blur_is_smaller_where_the_mask_is_thin() -> None:
    """A thin mask is still repainted: with a blur of 8, nothing of this stripe would be left."""
    original, generated = unit(0), unit(1)
    thin = np.zeros((1, 128, 96), np.float32)
    thin[0, :, 40:44] = 1
    pasted = paste(original, generated, thin, 8)
    np.testing.assert_array_equal(pasted[:, :40], original[:, :40])
    np.testing.assert_array_equal(pasted[:, 44:], original[:, 44:])
    np.testing.assert_allclose(pasted[:, 41:43], generated[:, 41:43], atol=0.05)
