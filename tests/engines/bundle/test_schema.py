"""Evaluation of symbolic shapes."""

from __future__ import annotations

import pytest

from sd2rt.engines.bundle.schema import Tensor, shape_of


def tensor(*shape: int | str) -> Tensor:
    return Tensor(name="x", dtype="float32", shape=shape)


def test_shape_of() -> None:
    dims = {"B": 2, "h": 8, "w": 12, "L": 154}
    assert shape_of(tensor("B", 5, 4, "h", "w"), dims) == (2, 5, 4, 8, 12)
    assert shape_of(tensor("B", 3, "8*h", "8*w"), dims) == (2, 3, 64, 96)
    assert shape_of(tensor("L"), dims) == (154,)
    assert shape_of(tensor(), dims) == ()


def test_shape_without_a_size() -> None:
    with pytest.raises(ValueError, match=r"x has the dimension '8\*h', but there are sizes for \['B', 'w'\]"):
        shape_of(tensor("B", "8*h"), {"B": 2, "w": 8})
