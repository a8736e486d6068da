"""A Brownian path against torchsde's tree."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torchsde

from sd2rt.runtime.rng.brownian_path import BrownianPath

CLOSE = 5e-6
LEVELS = (14.614641, 9.3, 9.2999992, 4.7, 1.25, 0.4, 0.0301, 0.029167)


@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**33 + 5])
@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 6, 10)])
def test_noise_of_a_seed(seed: int, shape: tuple[int, ...]) -> None:
    levels = np.array(LEVELS, np.float32)
    places = torch.from_numpy(levels)
    tree: Any = torchsde.BrownianTree(places[-1], torch.zeros(shape), places[0], entropy=seed)
    path = BrownianPath("cpu", seed, shape, float(levels[-1]), float(levels[0]))
    for i, j in [(0, 1), (1, 2), (1, 3), (2, 3), (3, 5), (3, 4), (6, 7), (0, 7), (4, 6)]:
        # k-diffusion asks for the interval from the lower to the higher level, and changes the sign.
        increment = -tree(places[j], places[i]) / (places[i] - places[j]).sqrt()
        actual = path.noise(float(levels[i]), float(levels[j]))
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, increment.numpy(), atol=CLOSE)


def test_the_order_of_questions_does_not_matter() -> None:
    there, back = (BrownianPath("cpu", 3, (4, 8, 8), 0.03, 14.6) for _ in range(2))
    steps = list(pairwise(LEVELS))
    first = [there.noise(*step) for step in steps]
    second = [back.noise(*step) for step in reversed(steps)][::-1]
    np.testing.assert_allclose(first, second, atol=CLOSE)


def test_other_generators_draw_other_paths() -> None:
    noises = [
        BrownianPath(rng, seed, (4, 8, 8), 0.03, 14.6).noise(10.0, 5.0)
        for rng, seed in (("cpu", 0), ("cuda", 0), ("cpu", 1), ("cpu", -1))
    ]
    for index, noise in enumerate(noises):
        assert abs(float(noise.std()) - 1) < 0.2
        assert all(np.abs(noise - other).max() > 0.5 for other in noises[:index])
