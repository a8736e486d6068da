from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sd2rt.runtime.images.enlarge import enlarge_latents

MODES: dict[str, dict[str, Any]] = {
    "bilinear": {"mode": "bilinear"},
    "nearest": {"mode": "nearest"},
    "nearest-exact": {"mode": "nearest-exact"},
    "bicubic": {"mode": "bicubic"},
    "bicubic-antialiased": {"mode": "bicubic", "antialias": True},
}


@pytest.mark.parametrize("method", MODES)
@pytest.mark.parametrize("size", [(16, 16), (9, 13), (24, 8), (17, 21)])
def test_pytorchs_modes(method: Any, size: tuple[int, int]) -> None:
    latents = np.random.default_rng(2).standard_normal((4, 8, 8), np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(latents)[None], size, **MODES[method])[0]
    np.testing.assert_allclose(enlarge_latents(latents, *size, method), expected.numpy(), atol=3e-6)


def test_antialiasing_changes_no_bilinear_enlargement() -> None:
    latents = torch.from_numpy(np.random.default_rng(3).standard_normal((1, 4, 8, 8), np.float32))
    plain, smooth = (
        torch.nn.functional.interpolate(latents, (12, 20), mode="bilinear", antialias=each)
        for each in (False, True)
    )
    torch.testing.assert_close(plain, smooth, atol=1e-6, rtol=0)
