"""Weights and BREAK; expected results are from AUTOMATIC1111's parser."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd2rt.runtime.prompts.a1111.attention import Weighted, parse_attention


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", 1)]),
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("a (cat:1.3)", [("a ", 1), ("cat", 1.3)]),
        ("a (cat: 1.3 )", [("a ", 1), ("cat", 1.3)]),
        ("(cat:-1)", [("cat", -1)]),
        ("(cat:.5)(dog:2.)", [("cat", 0.5), ("dog", 2)]),
        ("[cat]", [("cat", 1 / 1.1)]),
        ("((cat))", [("cat", 1.1 * 1.1)]),
        ("([cat])", [("cat", 1 / 1.1 * 1.1)]),
        ("(a (b:1.5) c)", [("a ", 1.1), ("b", 1.5 * 1.1), (" c", 1.1)]),
        # A weight belongs to round brackets.
        ("[cat:1.3]", [("cat:1.3", 1 / 1.1)]),
        # Neighbours of equal weight are merged and tokenized together.
        ("(un)(necessary)", [("unnecessary", 1.1)]),
        # Escapes.
        (r"\(cat\)", [("(cat)", 1)]),
        (r"\[cat\] (\))", [("[cat] ", 1), (")", 1.1)]),
        (r"a\\b", [("a\\b", 1)]),
        (r"a\b", [("ab", 1)]),
        ("a\\", [("a", 1)]),
        # Brackets that do not balance.
        ("(cat", [("cat", 1.1)]),
        ("a [cat", [("a ", 1), ("cat", 1 / 1.1)]),
        ("((a) b", [("a", 1.1 * 1.1), (" b", 1.1)]),
        ("cat)", [("cat)", 1)]),
        ("cat]", [("cat]", 1)]),
        ("cat:1.3)", [("cat:1.3)", 1)]),
        ("(a]", [("a]", 1.1)]),
        ("()", [("", 1)]),
        # An invalid number is text, in brackets without a number.
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("a: b", [("a: b", 1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1),
                ("house", 1.3 * 1.1 * 1.1),
                (" ", 1.1),
                ("on", 1 / 1.1 * 1.1),
                (" a ", 1.1),
                ("hill", 0.5 * 1.1),
                (", sun, ", 1.1),
                ("sky", 1.1 * 1.1 * 1.1 * 1.1),
                (".", 1.1),
            ],
        ),
    ],
)
def test_weights(text: str, expected: list[tuple[str, float]]) -> None:
    assert parse_attention(text) == [Weighted(*each) for each in expected]


def test_break_ends_a_chunk() -> None:
    first, end, second = parse_attention("a cat \n BREAK  a dog")
    assert (first, second) == (Weighted("a cat", 1), Weighted("a dog", 1))
    assert end.is_break
    assert [piece.is_break for piece in parse_attention("BREAK BREAK")] == [False, True, False, True, False]
    assert parse_attention("BREAKFAST break") == [Weighted("BREAKFAST break", 1)]


def test_break_between_brackets_is_a_word() -> None:
    """BREAK is marked by the weight -1, which brackets multiply."""
    pieces = parse_attention("(a BREAK b)")
    assert pieces == [Weighted("a", 1.1), Weighted("BREAK", -1.1), Weighted("b", 1.1)]
    assert not any(piece.is_break for piece in pieces)


@given(st.text(max_size=60) | st.lists(st.sampled_from([*"()[]:\\ a1.-", "BREAK"])).map("".join))
def test_any_text_can_be_read(text: str) -> None:
    pieces = parse_attention(text)
    assert pieces
    assert all(isinstance(piece.weight, float) for piece in pieces)


@given(
    st.text(st.characters(exclude_characters="()[]\\:"), max_size=60).filter(lambda text: "BREAK" not in text)
)
def test_text_without_marks_is_one_piece(text: str) -> None:
    assert parse_attention(text) == [Weighted(text, 1.0)]


@pytest.mark.parametrize(
    "text", ["(" * 20_000, "a(" * 5_000 + ")" * 5_000, " " * 50_000 + "x", ":" + " " * 9_000]
)
def test_no_text_takes_long(text: str) -> None:
    began = time.process_time()
    parse_attention(text)
    assert time.process_time() - began < 2
