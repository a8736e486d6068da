"""AND, prompt editing and alternation; expected results are from AUTOMATIC1111's parser."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd2rt.runtime.prompts.a1111.edits import EditedPrompt, compose

A1111_TEXT = st.lists(st.sampled_from([*"[]():|\\ab 01.5-\n", "AND", "BREAK"]), max_size=40).map("".join)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("", [("", 1)]),
        ("a AND b:0.7", [("a", 1), (" b", 0.7)]),
        ("a :1.2 AND b: -0.5 AND c", [("a", 1.2), (" b", -0.5), (" c", 1)]),
        # Without AND, a share scales the guidance of the whole prompt.
        ("a cat:0.7", [("a cat", 0.7)]),
        ("a cat:+2.", [("a cat", 2)]),
        ("a cat:.5", [("a cat", 0.5)]),
        ("a cat:one", [("a cat:one", 1)]),
        ("a cat:1.5 big", [("a cat:1.5 big", 1)]),
        ("a:2:3", [("a:2", 3)]),
        # A number in brackets is a weight of the text, not a share.
        ("(a:1.3)", [("(a:1.3)", 1)]),
        # Whole words only, in capitals, and inside brackets as well.
        ("SAND and BRAND", [("SAND and BRAND", 1)]),
        ("[a AND b:0.5]", [("[a", 1), (" b:0.5]", 1)]),
        # Texts of several lines have shares too.
        ("a\nb:0.5", [("a\nb", 0.5)]),
        ("a:0.5\n", [("a", 0.5)]),
        ("\n a\n\nb\n:\n0.5\n", [("\n a\n\nb", 0.5)]),
        (
            "a fox\non grass AND a castle\nat night:0.7",
            [("a fox\non grass", 1), (" a castle\nat night", 0.7)],
        ),
        ("a:2\nb AND c\n", [("a:2\nb", 1), (" c", 1)]),
    ],
)
def test_composition(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert compose(prompt) == expected


def runs(prompt: str, calls: int, nominal_calls: int | None = None) -> list[tuple[int, str]]:
    """Run lengths: how many successive calls have the same text."""
    actual: list[tuple[int, str]] = []
    for text in EditedPrompt(prompt).texts(calls, calls if nominal_calls is None else nominal_calls):
        if actual and actual[-1][1] == text:
            actual[-1] = actual[-1][0] + 1, text
        else:
            actual.append((1, text))
    return actual


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # 0.4 of 10 calls is 4, and call 4, counted from 0, is the last with the first text.
        ("[a:b:0.4] c", [(5, "a c"), (5, "b c")]),
        ("[a:b:4] c", [(5, "a c"), (5, "b c")]),
        ("[b:0.4]", [(5, ""), (5, "b")]),
        ("[a::0.4]", [(5, "a"), (5, "")]),
        ("[:b:0.4]", [(5, ""), (5, "b")]),
        ("[a:b:0.49]", [(5, "a"), (5, "b")]),
        ("[ a : b : 0.4 ]", [(5, " a "), (5, " b ")]),
        ("[a:b:.4]", [(5, "a"), (5, "b")]),
        ("[a:b:4e0]", [(5, "a"), (5, "b")]),
        # From the first call on, and never.
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:-3]", [(10, "b")]),
        ("[a:b:10]", [(10, "a")]),
        ("[a:b:99]", [(10, "a")]),
        ("[a:b:1e999]", [(10, "a")]),
        # With a decimal point it is a fraction, 1.0 all calls; without one it is a step.
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:1]", [(2, "a"), (8, "b")]),
        # Nested, and with weights, which stay unchanged.
        ("a[b:[c:d:6]:3]e", [(4, "abe"), (3, "ace"), (3, "ade")]),
        ("[(a:1.2):[[b]]:3]", [(4, "(a:1.2)"), (6, "[[b]]")]),
        ("([a:b:3]:1.2)", [(4, "(a:1.2)"), (6, "(b:1.2)")]),
        # In turn; the first option twice, because calls count from 0 and turns from 1.
        ("[a|b]", [(2, "a"), (1, "b"), (1, "a"), (1, "b"), (1, "a"), (1, "b"), (1, "a"), (1, "b"), (1, "a")]),
        (
            "[a|b|]c",
            [
                (2, "ac"),
                (1, "bc"),
                (1, "c"),
                (1, "ac"),
                (1, "bc"),
                (1, "c"),
                (1, "ac"),
                (1, "bc"),
                (1, "c"),
            ],
        ),
        ("[[a|b]:c:3]", [(2, "a"), (1, "b"), (1, "a"), (6, "c")]),
        # Not an edit: unchanged.
        ("[a]", [(10, "[a]")]),
        ("(a:1.3)", [(10, "(a:1.3)")]),
        ("[a:b]", [(10, "[a:b]")]),
        ("[a:b:c:0.5]", [(10, "[a:b:c:0.5]")]),
        ("[a:b:0.4", [(10, "[a:b:0.4")]),
        (r"\[a:b:0.4\]", [(10, r"\[a:b:0.4\]")]),
        ("[a:b|c:3]", [(10, "[a:b|c:3]")]),
        # What does not balance is left alone around what does.
        ("((a][:b:c [d:3]", [(4, "((a][:b:c "), (6, "((a][:b:c d")]),
        ("[[a:b:3]", [(4, "[a"), (6, "[b")]),
        # A | outside brackets, or a backslash at the end: nothing is edited.
        ("a|b [c:d:3]", [(10, "a|b [c:d:3]")]),
        ("[c:d:3] \\", [(10, "[c:d:3] \\")]),
        ("", [(10, "")]),
    ],
)
def test_editing_over_ten_calls(prompt: str, expected: list[tuple[int, str]]) -> None:
    assert runs(prompt, 10) == expected


def a1111_schedule(entries: Sequence[tuple[float, str]], total: int, calls: int) -> list[str]:
    """AUTOMATIC1111's own rule, for texts that follow each other: the first whose end is not passed.

    Args:
        entries: texts with the numbers at which they end; the last ends with the total.
    """
    schedule = [(min(total, int(end)), text) for end, text in entries if int(end) >= 1]
    schedule.append((total, "last"))
    return [next(text for end, text in schedule if call <= end) for call in range(calls)]


@given(
    steps=st.integers(1, 60),
    evaluations=st.integers(1, 2),
    strength=st.floats(0.05, 1),
    when=st.floats(0, 1).map(lambda value: f"{value:.3f}") | st.integers(0, 130).map(str),
)
def test_edits_count_all_calls_of_a_sampler(steps: int, evaluations: int, strength: float, when: str) -> None:
    """Both kinds of numbers count the calls of all steps, also where an image takes only the last steps."""
    total = steps * evaluations
    calls = max(1, int(strength * total))
    end = float(when) * total if "." in when else float(when)
    texts = EditedPrompt(f"[first:last:{when}]").texts(calls, total)
    assert list(texts) == a1111_schedule([(end, "first")], total, calls)


def test_calls_of_two_evaluations_and_of_late_starts() -> None:
    """Heun with 20 steps makes 39 calls, which AUTOMATIC1111 counts as 40."""
    assert runs("[a:b:10]", 39, 40) == [(11, "a"), (28, "b")]
    assert runs("[a:b:0.25]", 39, 40) == [(11, "a"), (28, "b")]
    assert runs("[a:b:0.5]", 8, 20) == [(8, "a")]
    assert runs("[a:b:3]", 8, 20) == [(4, "a"), (4, "b")]
    # PLMS makes one call more than it has steps.
    assert runs("[a:b:5]", 11, 10) == [(6, "a"), (5, "b")]
    assert runs("[a:b:1.0]", 12, 10) == [(12, "a")]


def test_versions_are_all_that_is_encoded_together() -> None:
    """Their number and order matter, because their means are restored together."""
    assert EditedPrompt("a").versions(10) == ("a",)
    assert EditedPrompt("[a:b:4]").versions(10) == ("a", "b")
    assert EditedPrompt("[a:b:0]").versions(10) == ("b",)
    assert EditedPrompt("[a|b]").versions(5) == ("a", "b", "a", "b", "a")
    # An edit inside a text that is not reached counts too.
    assert EditedPrompt("[[a:b:2]:8]").versions(10) == ("", "", "b")


@given(A1111_TEXT | st.text(max_size=40), st.integers(1, 12), st.integers(1, 12))
def test_any_text_can_be_read(prompt: str, calls: int, nominal: int) -> None:
    for text, share in compose(prompt):
        assert isinstance(share, float)
        edited = EditedPrompt(text)
        texts = edited.texts(calls, nominal)
        assert len(texts) == calls
        assert set(texts) <= set(edited.versions(nominal))


@given(st.text(st.characters(exclude_characters="[]|\\"), max_size=40))
def test_text_without_square_brackets_is_unchanged(text: str) -> None:
    assert EditedPrompt(text).texts(3, 3) == (text,) * 3


def test_deep_brackets_take_no_recursion() -> None:
    depth = 5_000
    nested = "[" * depth + "a|b" + "|c]" * depth
    assert EditedPrompt(nested).texts(1, 1) == ("a",)
    assert EditedPrompt("[" * depth).texts(1, 1) == ("[" * depth,)
