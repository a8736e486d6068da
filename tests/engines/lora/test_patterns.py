"""Patterns of PEFT's configuration, against Python's regular expressions as PEFT uses them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd2rt.engines.lora.patterns import Patterns

PATHS = [
    "conv_in",
    "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0",
    "mid_block.resnets.0.conv1",
    "up_blocks.3.resnets.2.conv_shortcut",
    "text_model.encoder.layers.11.self_attn.q_proj",
]
PARTS = [
    *("to_q", "attn1", "attn2", "conv", "resnets", "down_blocks", "0", "1", "q_proj", "to_out.0", "conv_in"),
    *(
        ".",
        r"\.",
        ".*",
        r"\d+",
        "[0-3]",
        "(to_q|to_k)",
        "(?:a|b)?",
        "^",
        "$",
        "attn[12]",
        r"\w+",
        "to_.",
        "x{0,2}",
    ),
]


def as_peft(patterns: dict[str, float], path: str) -> float:
    """PEFT's rule: the first pattern that matches the path, or its end after a dot."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return -1.0


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(PARTS), min_size=1, max_size=5).map("".join), min_size=1, max_size=6)
)
def test_as_peft_matches(patterns: list[str]) -> None:
    values = {}
    for index, pattern in enumerate(patterns):
        try:
            re.compile(pattern)
        except re.error:
            continue
        values[pattern] = float(index)
    ours = Patterns(values)
    for path in PATHS:
        assert ours.value((path,), -1.0) == as_peft(values, path), path


def test_as_peft_itself_matches() -> None:
    other = pytest.importorskip("peft.utils.other")
    values = {
        r"attn\d\.to_q": 1.0,
        "resnets.0.conv1": 2.0,
        ".*shortcut": 3.0,
        "^conv_in": 4.0,
        "to.out.0": 5.0,
    }
    for path in PATHS:
        key = other.get_pattern_key(values, path)
        assert Patterns(values).value((path,), -1.0) == values.get(key, -1.0)


def test_expressions_that_take_years_in_python() -> None:
    # Python's own engine would not end in the age of the universe.
    assert (
        Patterns({"(a|a)*(a|a)*(x+x+)+y": 1.0, "((.*)*)*z": 2.0}).value(("a" * 200 + "x" * 200,), 7.0) == 7.0
    )


@pytest.mark.parametrize(
    "pattern", ["(a", r"(?=a)b", r"(a)\1", "(?<!a)b", "a" * 2000 + "+", "*", "a{1,2000000000}"]
)
def test_expressions_that_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="regular expression"):
        Patterns({pattern: 1.0})


def test_too_many() -> None:
    with pytest.raises(ValueError, match="has 5000 patterns"):
        Patterns({f"a{index}": 1.0 for index in range(5000)})
    with pytest.raises(ValueError, match="has 300 regular expressions, the limit is 256"):
        Patterns({f"a{index}+": 1.0 for index in range(300)})
