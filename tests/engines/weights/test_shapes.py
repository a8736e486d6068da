from __future__ import annotations

import pytest

from sd2rt.engines.weights.shapes import linear_shape


@pytest.mark.parametrize(
    ("shape", "linear"),
    [
        ((4, 3, 1, 1), (4, 3)),
        ((1, 1, 1, 1), (1, 1)),
        ((4, 3), (4, 3)),
        ((4, 3, 3, 3), (4, 3, 3, 3)),
        ((4, 3, 1), (4, 3, 1)),
        ((4, 1), (4, 1)),
        ((4,), (4,)),
        ((), ()),
    ],
)
def test_linear_shape(shape: tuple[int, ...], linear: tuple[int, ...]) -> None:
    assert linear_shape(shape) == linear
