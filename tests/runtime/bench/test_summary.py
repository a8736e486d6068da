from __future__ import annotations

import pytest

from sd2rt.runtime.bench.summary import digits, summary


def test_few_values_have_no_percentiles() -> None:
    assert summary([3.0, 1.0, 2.0, 10.0]) == {"median": 2.5, "min": 1.0, "max": 10.0, "n": 4}


def test_percentiles_of_many() -> None:
    found = summary(iter(range(101)))
    assert (found["p10"], found["median"], found["p90"], found["n"]) == (10, 50, 90, 101)


@pytest.mark.parametrize(
    ("value", "kept"),
    [(123456789.0, 123456789.0), (1 / 3, 0.333333), (1234.5678, 1234.57), (0.0, 0.0), (2e-7 / 3, 6.66667e-8)],
)
def test_six_digits(value: float, kept: float) -> None:
    assert digits(value) == kept
