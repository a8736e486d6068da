"""Times of kernels: the longer of operations and bytes, whole waves, and the order of scenarios."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.cost_model.assumptions import A800, ASSUMPTIONS, H100, SCENARIOS, assumed
from benchmarks.cost_model.kernels import Kernel, Product, attention_filling, filling, milliseconds

MILLION = 1_000_000
COPY = Kernel("copy", "residual", read=400 * MILLION, written=400 * MILLION)
PRODUCT = Kernel(
    "product", "product", operations=2 * 8192**3, engine="gemm", product=Product(1, 8192, 8192, 8192)
)


def test_a_large_copy_takes_its_bytes_at_the_memorys_rate() -> None:
    rate = 3.35e12 * assumed("memory", "expected") * assumed("copies", "expected")
    assert COPY.microseconds("expected") == pytest.approx(assumed("fixed", "expected") + 800e6 / rate * 1e6)
    weights = replace(COPY, read=0, written=0, weights=800 * MILLION)
    assert weights.microseconds("expected") == pytest.approx(
        assumed("fixed", "expected") + 800e6 / (3.35e12 * assumed("memory", "expected")) * 1e6
    )


def test_small_tensors_come_from_the_cache() -> None:
    small = replace(COPY, read=MILLION, written=MILLION)
    moved = small.microseconds("expected") - assumed("fixed", "expected")
    assert moved == pytest.approx(
        2e6 / (assumed("cache_rate", "expected") * 1e12 * assumed("copies", "expected")) * 1e6
    )
    assert moved < 2e6 / 3.35e12 * 1e6


def test_a_large_product_takes_its_operations() -> None:
    filled = filling(PRODUCT.product or Product(1, 1, 1, 1), 4, H100.multiprocessors)
    assert 0.9 < filled <= 1
    seconds = 2 * 8192**3 / (989.4e12 * assumed("gemm", "expected") * filled)
    assert PRODUCT.microseconds("expected") == pytest.approx(assumed("fixed", "expected") + seconds * 1e6)


def test_tiles_come_in_whole_waves() -> None:
    # 132 tiles of 128 x 128, one for each multiprocessor.
    full = Product(1, 128 * 132, 128, 64)
    assert filling(full, 1, 132) == pytest.approx(0.95)
    # One tile more needs a second wave, unless tiles are smaller.
    assert filling(Product(1, 128 * 133, 128, 64), 1, 132) < 0.9
    # A few rows use a few multiprocessors, unless a long sum is split.
    thin = Product(1, 128, 1280, 64)
    assert filling(thin, 8, 132) == filling(thin, 1, 132) < 0.25
    assert filling(replace(thin, depth=8192), 8, 132) > 2 * filling(thin, 8, 132)


def test_attention_takes_keys_in_blocks() -> None:
    assert attention_filling(Product(132, 128, 128, 128), 132) == 1
    assert attention_filling(Product(132, 128, 128, 77), 132) == pytest.approx(77 / 128)
    assert attention_filling(Product(133, 128, 128, 128), 132) == pytest.approx(133 / 264)


@pytest.mark.parametrize("kernel", [COPY, PRODUCT, replace(COPY, read=10, written=10, launches=3)])
def test_favourable_assumptions_give_less_time(kernel: Kernel) -> None:
    low, expected, high = (kernel.microseconds(scenario) for scenario in SCENARIOS)
    assert low < expected < high
    assert kernel.microseconds("expected", A800) >= expected


def test_a_conversion_of_the_output_may_be_left_out() -> None:
    optional = replace(COPY, optional=True)
    assert optional.microseconds("low") == 0
    assert optional.microseconds("expected") == COPY.microseconds("expected")


def test_times_are_summed_by_kind() -> None:
    times = milliseconds([COPY, COPY, PRODUCT], "expected")
    assert times["residual"] == pytest.approx(2 * COPY.microseconds("expected") / 1e3)
    assert times["product"] == pytest.approx(PRODUCT.microseconds("expected") / 1e3)
    assert times["attention"] == 0


@pytest.mark.parametrize("name", ASSUMPTIONS)
def test_every_assumption_has_a_source_and_an_order(name: str) -> None:
    each = ASSUMPTIONS[name]
    assert each.source
    assert each.low <= each.expected <= each.high or each.low >= each.expected >= each.high
