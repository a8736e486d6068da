from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sd2rt.runtime.rng.select import make_generator
from sd2rt.runtime.rng.torch_cuda import PhiloxGenerator, philox

H100, A100, A4000, RTX_3060 = "cuda:132", "cuda:108", "cuda:48x1536", "cuda:28x1536"


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


# Random123 1.14, tests/kat_vectors, the lines "philox4x32 10": counter, key, words.
KNOWN_ANSWERS = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    a, b, c, d = words(counter)
    low, high = words(key)
    actual = philox(a | b << 32, np.array([c | d << 32], np.uint64), (low, high))
    assert [int(word[0]) for word in actual] == words(expected) == one_by_one((a, b, c, d), (low, high))


def one_by_one(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """Philox 4x32-10 as in its paper, with Python integers."""
    (a, b, c, d), (low, high) = counter, key
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = right >> 32 ^ b ^ low, right % 2**32, left >> 32 ^ d ^ high, left % 2**32
        low, high = (low + 0x9E3779B9) % 2**32, (high + 0xBB67AE85) % 2**32
    return [a, b, c, d]


def rows(normals: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows and columns of a large matrix that PyTorch prints: three at each end."""
    ends = [0, 1, 2, -3, -2, -1]
    return normals[ends][:, ends]


def assert_printed(actual: NDArray[np.float32], printed: Sequence[object]) -> None:
    """Compare with values printed to four decimals, from a GPU's approximate sines."""
    np.testing.assert_allclose(actual, np.array(printed), rtol=0, atol=0.5e-4 + 5e-6)


def test_values_of_another_implementation() -> None:
    """AUTOMATIC1111/stable-diffusion-webui, modules/rng_philox.py: torch.randn(3, 4, device="cuda"), seed 0."""
    expected = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    actual = make_generator("cuda", 0).randn((3, 4))
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6)


def test_three_values() -> None:
    """pytorch/pytorch issue 79496: torch.manual_seed(10), torch.randn(3, device="cuda")."""
    assert_printed(make_generator("cuda", 10).randn((3,)), [-0.1029, 1.6810, -0.2708])


@pytest.mark.parametrize(
    ("gpu", "last"), [(H100, [-0.6970, -0.7780, 0.3267]), (A100, [0.1549, -0.6797, -0.1656])]
)
def test_more_values_than_threads_on_datacenter_gpus(gpu: str, last: list[float]) -> None:
    """pytorch/pytorch issue 143086: H100 and A100 differ in 9,483,264 values of seed 1: 9 and 11 counters."""
    actual = make_generator(gpu, 1).randn((1, 49 * 12 * 112 * 144))[0]
    assert_printed(actual[[0, 1, 2, -3, -2, -1]], [-0.2963, 2.6764, -0.1408, *last])


def test_more_values_than_threads_on_an_rtx_a4000() -> None:
    """pytorch/pytorch issue 97097: normal_(5, 5**.5) of [1000, 100], seed 14, on 48 multiprocessors of 1536."""
    actual = make_generator(A4000, 14).randn((1000, 100)) * np.float32(5**0.5) + 5
    expected = [
        [2.8731, 5.2727, 2.9889, 1.6853, 9.6331, 6.6319],
        [3.9968, 3.8097, 5.7328, 4.4029, 3.9804, 7.4698],
        [6.5552, 4.0857, 4.2315, 2.7704, 3.5479, 3.3063],
        [8.6297, 2.3137, 6.2596, 7.9358, 4.4697, 2.7475],
        [7.0551, 7.8583, 3.9990, 4.1139, 8.9315, 4.2042],
        [2.7337, 2.2106, 7.7815, 8.2207, 6.5395, 4.2604],
    ]
    assert_printed(rows(actual), expected)


def test_more_values_than_threads_on_an_rtx_3060() -> None:
    """pytorch/pytorch issue 158398: [1, 64, 2048] of seed 42, on 28 multiprocessors of 1536: four lanes."""
    actual = make_generator(RTX_3060, 42).randn((1, 64, 2048))[0]
    expected = [
        [0.1940, 2.1614, -0.1721, 1.4540, -2.7733, -0.8932],
        [-0.4574, 0.8063, 0.1580, 0.1124, 0.2769, -1.2535],
        [1.1346, -0.6329, -0.9147, -1.0001, -1.1552, -0.6955],
        [-0.4861, 0.3358, 1.0578, -0.7282, 0.5087, 0.1318],
        [0.7881, 0.8339, -1.1424, -0.6297, -1.1112, -0.4091],
        [-1.2356, -0.4083, -0.4695, -0.4841, 1.2850, -0.0282],
    ]
    assert_printed(rows(actual), expected)


def by_the_kernel(seed: int, threads: int, sizes: list[int]) -> list[list[float]]:
    """PyTorch's kernel, thread by thread: DistributionTemplates.h and cuRAND's curand_normal4, in double precision.

    Only the uniform number is a float32, as there: near 1 its logarithm consists mostly of that rounding.
    """
    key, offset, draws = (seed % 2**32, seed % 2**64 >> 32), 0, []
    for size in sizes:
        grid = min(threads // 256, -(-size // 256))
        out = [0.0] * size
        rounds = -(-size // (256 * grid * 4)) if size else 0
        for thread in range(256 * grid):
            for turn in range(rounds):
                counter = offset // 4 + turn
                x = one_by_one((counter % 2**32, counter >> 32, thread, 0), key)
                pairs = [(x[0], x[1]), (x[2], x[3])]
                units = [float(np.float32(u) * np.float32(2**-32) + np.float32(2**-33)) for u, _ in pairs]
                radii = [math.sqrt(-2 * math.log(unit)) for unit in units]
                angles = [(v + 0.5) * 2**-32 * 2 * math.pi for _, v in pairs]
                four = [r * f(a) for r, a in zip(radii, angles, strict=True) for f in (math.sin, math.cos)]
                for lane, value in enumerate(four):
                    place = thread + 256 * grid * (lane + 4 * turn)
                    if place < size:
                        out[place] = value
        offset += 4 * rounds
        draws.append(out)
    return draws


@settings(max_examples=25, deadline=None)
@example(seed=340127, threads=512, sizes=[295])
@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    threads=st.integers(1, 3).map(lambda blocks: 256 * blocks),
    sizes=st.lists(st.integers(0, 3000), max_size=4),
)
def test_any_sequence_of_draws(seed: int, threads: int, sizes: list[int]) -> None:
    ours = PhiloxGenerator(seed, threads)
    for size, expected in zip(sizes, by_the_kernel(seed, threads, sizes), strict=True):
        np.testing.assert_allclose(ours.randn((size,)), np.array(expected), rtol=0, atol=4e-6)


def test_gpus_agree_up_to_their_threads() -> None:
    small, large = (make_generator(gpu, 3) for gpu in (RTX_3060, H100))
    shape = (4, 96, 96)
    np.testing.assert_array_equal(small.randn(shape), large.randn(shape))
    np.testing.assert_array_equal(small.randn(shape), large.randn(shape))
    assert not np.array_equal(small.randn((50_000,)), large.randn((50_000,)))


def test_a_seed_counts_modulo_2_to_the_64() -> None:
    np.testing.assert_array_equal(
        make_generator("cuda", -5).randn((20,)), make_generator("cuda", 2**64 - 5).randn((20,))
    )
    assert not np.array_equal(
        make_generator("cuda", 5).randn((20,)), make_generator("cuda", 2**32 + 5).randn((20,))
    )


def test_normals_are_standard() -> None:
    normals = make_generator("cuda", 3).randn((1000, 1000)).astype(np.float64)
    assert abs(normals.mean()) < 5 / math.sqrt(normals.size)
    assert abs(normals.std() - 1) < 5 / math.sqrt(normals.size)
    assert np.isfinite(normals).all()


@pytest.mark.parametrize(
    "rng", ["gpu", "CUDA", "cuda:", "cuda:0", "cuda:99999", "cuda:8x2000", "cuda:8x", "cpu:1", ""]
)
def test_no_such_generator(rng: str) -> None:
    with pytest.raises(ValueError, match="use cpu, cuda, cuda:N"):
        make_generator(rng, 1)
