"""Rough pictures of latents."""

from __future__ import annotations

import numpy as np

from sd2rt.engines.bundle.manifest import PreviewMatrix
from sd2rt.runtime.networks.preview import Preview


def test_a_pixel_is_the_matrix_of_its_latent() -> None:
    source = np.random.default_rng(3)
    matrix = source.uniform(-0.1, 0.1, (5, 3))
    matrix[4] += 0.5
    preview = Preview(PreviewMatrix(matrix=tuple(map(tuple, matrix.tolist())), error=0.25))
    assert preview.error == 0.25
    latents = source.standard_normal((4, 6, 5)).astype(np.float32)
    picture = preview.image(latents)
    assert picture.size == (5, 6)
    expected = (np.einsum("co,chw->hwo", matrix[:4], latents) + matrix[4]) * 255
    assert np.abs(np.asarray(picture, np.float32) - expected.clip(0, 255)).max() <= 0.51


def test_latents_that_are_not_finite_have_a_picture() -> None:
    preview = Preview(PreviewMatrix(matrix=((1.0, 1.0, 1.0),) * 5, error=0.0))
    latents = np.full((4, 2, 2), np.nan, np.float32)
    latents[:, 0] = np.inf
    assert preview.image(latents).size == (2, 2)
