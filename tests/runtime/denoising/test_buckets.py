"""Buckets: what they take, the choice by measured cost, and sizes without a measurement."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd2rt.runtime.denoising.buckets import Bucket, Buckets, batch_sizes, sizes_between

COUNTS = st.integers(1, 16)
H200 = {1: 0.167, 2: 0.183, 4: 0.240, 8: 0.425, 16: 0.832}


def call(samples: int, rows: int, prompts: int = 1, length: int = 77) -> Bucket:
    return Bucket(rows, samples, prompts, length, 8, 8)


def test_dims() -> None:
    dims = {"B": 2, "R": 3, "P": 1, "L": 77, "h": 8, "w": 16}
    assert Bucket.of(dims).dims == dims


@pytest.mark.parametrize(
    ("bucket", "taken"),
    [
        (call(2, 4), True),
        (call(4, 5), True),
        (call(4, 4), False),  # padding would have no row of its own
        (call(1, 4), False),
        (call(2, 3), False),
        (call(2, 4, 3), True),
        (call(2, 4, 1, 154), True),
        (call(2, 4, 1, 100), False),
        (replace(call(2, 4), h=16), False),
    ],
    ids=str,
)
def test_what_a_bucket_takes(bucket: Bucket, taken: bool) -> None:
    assert bucket.takes(call(2, 4)) is taken


@settings(deadline=None)
@given(COUNTS, COUNTS, st.integers(1, 3), st.sampled_from((77, 154, 50)), st.integers(1, 20))
def test_a_call_without_a_measurement_is_padded_to_a_power_of_two(
    limit: int, samples: int, prompts: int, length: int, further: int
) -> None:
    samples = min(samples, limit)
    asked = call(samples, min(samples + further, samples * (prompts + 1)), prompts, length)
    padded = Bucket.of(Buckets(limit, lambda dims: True).padded(asked.dims))
    assert padded.takes(asked)
    assert padded.samples in batch_sizes(limit)
    assert padded.rows % padded.samples == 0
    assert padded.samples < 2 * samples
    assert padded.rows <= (prompts + 1) * padded.samples
    assert (padded.prompts, padded.length) == (prompts, length)


def test_few_sizes_serve_all_calls() -> None:
    buckets = Buckets(16, lambda dims: True)
    sizes = {
        Bucket.of(buckets.padded(call(samples, rows).dims))
        for samples in range(1, 17)
        for rows in range(samples, 2 * samples + 1)
    }
    assert len(sizes) == 2 * len(batch_sizes(16)) == 10


def test_the_cheapest_of_those_measured_is_chosen() -> None:
    buckets = Buckets(8, lambda dims: True)
    for samples, seconds in ((2, 3.0), (4, 2.0), (8, 2.0)):
        buckets.measure(call(samples, 2 * samples), seconds)
    # Two samples run faster in a call of four here, and of equal ones the smaller is taken.
    assert Bucket.of(buckets.padded(call(2, 4).dims)) == call(4, 8)
    assert buckets.seconds(call(2, 4)) == 2.0
    assert buckets.seconds(call(9, 9)) is None
    buckets.measure(call(2, 4), 1.0)
    assert Bucket.of(buckets.padded(call(2, 4).dims)) == call(2, 4)
    buckets.forget()
    assert buckets.seconds(call(2, 4)) is None


def test_a_call_that_no_measured_one_takes(caplog: Any) -> None:
    buckets = Buckets(4, lambda dims: True)
    buckets.measure(call(4, 8), 1.0)
    with caplog.at_level("INFO"):
        assert Bucket.of(buckets.padded(call(3, 7, 3).dims)) == call(4, 8, 3)
        assert Bucket.of(buckets.padded(call(3, 7, 3).dims)) == call(4, 8, 3)
    assert len(caplog.records) == 1
    assert "not launched at start" in caplog.text


def test_sizes_that_the_engine_lacks_are_not_used() -> None:
    """Engines for guided calls of exactly one image, and of three or four."""
    buckets = Buckets(4, lambda dims: dims["B"] in (1, 3, 4) and dims["R"] == 2 * dims["B"])
    assert Bucket.of(buckets.padded(call(1, 1).dims)) == call(1, 2)
    assert Bucket.of(buckets.padded(call(2, 2).dims)) == call(4, 8)
    # The engine reports the sizes that were asked for.
    assert Bucket.of(buckets.padded(call(4, 9, 2).dims)) == call(4, 9, 2)


def test_batch_sizes() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(8) == [1, 2, 4, 8]
    assert batch_sizes(11) == [1, 2, 4, 8, 11]


def test_sizes_between() -> None:
    """On the published curve of an H200, three images are expected to save over a tenth of four."""
    assert sizes_between(H200) == [3, 6, 12]
    assert sizes_between(dict.fromkeys(H200, 1.0)) == []
    assert sizes_between({1: 1.0, 2: 2.0}) == []


def test_a_new_limit_changes_what_is_chosen() -> None:
    buckets = Buckets(3, lambda dims: True)
    assert Bucket.of(buckets.padded(call(3, 6).dims)) == call(3, 6)
    buckets.limit = 8
    assert Bucket.of(buckets.padded(call(3, 6).dims)) == call(4, 8)
