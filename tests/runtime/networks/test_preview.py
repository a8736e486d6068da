"""Rough pictures of latents."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sd2rt.runtime.networks.preview import Preview


def test_a_linear_decoder_is_found_exactly() -> None:
    source = np.random.default_rng(3)
    weights = source.uniform(-0.1, 0.1, (3, 4)).astype(np.float32)

    def decode(latents: NDArray[np.float32]) -> NDArray[np.float32]:
        small = np.einsum("oc,chw->ohw", weights, latents) + 0.1
        decoded: NDArray[np.float32] = small.repeat(8, 1).repeat(8, 2).astype(np.float32)
        return decoded

    preview = Preview.fit(decode, 4)
    assert preview.matrix.shape == (5, 3)
    assert preview.error < 1e-6
    latents = source.standard_normal((4, 6, 5)).astype(np.float32)
    picture = preview.image(latents)
    assert picture.size == (5, 6)
    expected = (decode(latents)[:, ::8, ::8] / 2 + 0.5).transpose(1, 2, 0) * 255
    assert np.abs(np.asarray(picture, np.float32) - expected).max() <= 1


def test_latents_that_are_not_finite_have_a_picture() -> None:
    preview = Preview(np.ones((5, 3), np.float32), 0.0)
    latents = np.full((4, 2, 2), np.nan, np.float32)
    latents[:, 0] = np.inf
    assert preview.image(latents).size == (2, 2)
