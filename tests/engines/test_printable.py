from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from sd2rt.engines.printable import printable, shown

HOSTILE = (
    "\x1b[2J\x1b]0;a\x07 \x9b31m \x85 \r\n \u2028\u2029 \u202e\u2066\u200f\u200b\ufeff\u00ad \ud800 \x7f\x00"
)
"""Escape codes, C1 controls, newlines of every kind, bidirectional and invisible characters, a lone surrogate."""


@given(st.text(st.characters(codec=None)))
def test_a_printable_text_is_one_line_of_visible_characters(text: str) -> None:
    made = printable(text)
    assert made.isprintable()
    assert len(made.splitlines()) <= 1
    made.encode()
    assert printable(made) == made


def test_every_control_character_is_escaped() -> None:
    for number in (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xD800):
        assert printable(f"a{chr(number)}b").startswith("a\\"), hex(number)
    for character in map(chr, range(sys.maxunicode + 1)):
        assert printable(character).isprintable()


def test_readable_text_stays_as_it_is() -> None:
    for text in ("a lighthouse", "Äpfel, 灯台, …", "/tmp/a b/c.png", "\\x1b is spelled"):
        assert printable(text) == text


def test_shown_is_short() -> None:
    assert shown("a" * 60) == "a" * 60
    assert shown("a" * 61) == "a" * 60 + "…"
    assert shown(HOSTILE * 9, 10).isprintable()
