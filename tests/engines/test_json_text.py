from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd2rt.engines.json_text import parse_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_values_are_those_of_json(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize("depth", [65, 900, 990, 1000, 100_000])
@pytest.mark.parametrize("pair", ["[]", '{"a":}'])
def test_deep_values(depth: int, pair: str) -> None:
    """Also at depths that json parses, but at which other code would run out of stack."""
    with pytest.raises(ValueError, match="nested more than 64 levels"):
        parse_json(pair[:-1] * depth + "1" + pair[-1] * depth)


def test_long_numbers() -> None:
    assert float(parse_json("9" * 300)) == 1e300
    for digits in (301, 401, 5000):
        with pytest.raises(ValueError, match="digits"):
            parse_json(f'{{"a": [{"9" * digits}]}}')
