"""Several draws at once are those that follow each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd2rt.runtime.rng.select import draws, make_generator


@given(
    st.sampled_from(["cpu", "cuda", "cuda:58x1024"]),
    st.tuples(st.integers(1, 5), st.integers(1, 24), st.integers(1, 24)),
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
)
def test_the_stream_is_the_same(rng: str, shape: tuple[int, int, int], most: list[int]) -> None:
    together, alone = make_generator(rng, 11), make_generator(rng, 11)
    for count in most:
        made = draws(together, shape, count)
        assert 1 <= len(made) <= count
        for each in made:
            assert each.shape == shape
            np.testing.assert_array_equal(each, alone.randn(shape))


@pytest.mark.parametrize(
    ("shape", "most", "made"), [((4, 16, 16), 20, 8), ((4, 16, 16), 3, 3), ((4, 64, 64), 20, 1)]
)
def test_small_draws_are_made_together(shape: tuple[int, ...], most: int, made: int) -> None:
    assert len(draws(make_generator("cpu", 1), shape, most)) == made
