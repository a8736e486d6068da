"""The fit of the matrix of previews."""

from __future__ import annotations

import numpy as np
import pytest

from sd2rt.engines.interface import Float32Array
from sd2rt.engines.preview import fit_preview


@pytest.mark.parametrize(("channels", "factor"), [(4, 8), (4, 4), (8, 8), (1, 1)])
def test_a_linear_decoder_is_found_exactly(channels: int, factor: int) -> None:
    weights = np.random.default_rng(3).uniform(-0.1, 0.1, (3, channels)).astype(np.float32)

    def decode(latents: Float32Array) -> Float32Array:
        small = np.einsum("oc,chw->ohw", weights, latents) + 0.1
        decoded: Float32Array = small.repeat(factor, 1).repeat(factor, 2).astype(np.float32)
        return decoded

    fitted = fit_preview(decode, channels)
    expected = np.append(weights.T / 2, np.full((1, 3), 0.55), axis=0)
    # Rounded to four decimals.
    np.testing.assert_allclose(fitted.matrix, expected, atol=0.51e-4)
    assert fitted.error == 0
    assert fitted == fit_preview(decode, channels)


def test_the_error_is_the_root_mean_square_of_colours() -> None:
    """Colours that have nothing to do with the latents: the fit is their mean, the error their deviation."""
    source = np.random.default_rng(1)

    def decode(latents: Float32Array) -> Float32Array:
        pixels = source.choice([-0.5, 0.5], (3, *latents.shape[1:]))
        return pixels.astype(np.float32)

    fitted = fit_preview(decode, 4)
    assert fitted.error == pytest.approx(0.25, abs=0.005)
    np.testing.assert_allclose(fitted.matrix[-1], 0.5, atol=0.02)


def test_a_decoder_that_overflows() -> None:
    def decode(latents: Float32Array) -> Float32Array:
        image = np.full((3, 128, 128), np.nan, np.float32)
        image[0] = np.inf
        return image

    fitted = fit_preview(decode, 4)
    np.testing.assert_allclose(fitted.matrix, [[0, 0, 0]] * 4 + [[1, 0.5, 0.5]], atol=1e-4)
