from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sd2rt.runtime.rng.torch_cpu import Generator

# Without AVX2, PyTorch rounds angles differently, so the last bits differ.
VECTORISED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
TOLERANCE = 1e-6 if VECTORISED else 4e-6


def assert_same_stream(seed: int, shapes: list[tuple[int, ...]]) -> None:
    theirs = torch.Generator("cpu").manual_seed(seed)
    ours = Generator(seed)
    for shape in shapes:
        expected = torch.randn(shape, generator=theirs).numpy()
        actual = ours.randn(shape)
        assert actual.dtype == np.float32
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1])
@pytest.mark.parametrize(
    "shape", [(1, 4, 64, 64), (1, 4, 96, 96), (2, 4, 9, 13), (16,), (17,), (31,), (15,), (1,)]
)
def test_one_draw(seed: int, shape: tuple[int, ...]) -> None:
    assert_same_stream(seed, [shape])


@pytest.mark.parametrize("seed", [2**32, 2**32 + 7, 2**63, 2**64 - 1, -1, -5, -(2**63)])
def test_a_seed_counts_modulo_2_to_the_32(seed: int) -> None:
    assert_same_stream(seed, [(64,), (3,)])
    np.testing.assert_array_equal(Generator(seed).randn((20,)), Generator(seed % 2**32).randn((20,)))


def test_an_odd_small_draw_leaves_a_normal_for_the_next_small_draw() -> None:
    assert_same_stream(5, [(3,), (4, 8, 8), (1,), (40,), (5,), (16,), (2,), (15,), (15,)])


def test_draws_of_no_dimension_and_of_no_elements() -> None:
    assert_same_stream(5, [(), (0,), (), (4, 0, 4), (16,), ()])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    shapes=st.lists(st.lists(st.integers(0, 20), max_size=3).map(tuple), max_size=8),
)
def test_any_sequence_of_draws(seed: int, shapes: list[tuple[int, ...]]) -> None:
    assert_same_stream(seed, shapes)


def test_normals_are_standard() -> None:
    normals = Generator(3).randn((1000, 1000)).astype(np.float64)
    assert abs(normals.mean()) < 5 / math.sqrt(normals.size)
    assert abs(normals.std() - 1) < 5 / math.sqrt(normals.size)
    assert np.isfinite(normals).all()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(
        st.one_of(st.integers(0, 40), st.sampled_from([623, 624, 625, 1024, 4 * 96 * 96])),
        min_size=1,
        max_size=6,
    ),
)
def test_draws_on_both_sides_of_sixteen_and_across_the_twister_s_state(seed: int, sizes: list[int]) -> None:
    assert_same_stream(seed, [(size,) for size in sizes])


def test_numpy_s_random_numbers_are_not_loaded() -> None:
    """Importing them takes ten times as long as drawing an image's noise."""
    code = (
        "import sys\nfrom sd2rt.runtime.rng.torch_cpu import Generator\nGenerator(3).randn((4, 96, 96))\n"
        "assert 'numpy.random' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
