from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd2rt.engines.text_file import decode_text

LINES = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=1)
ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(lines=LINES, end=st.sampled_from(["\n", "\r\n", "\r"]))
def test_encodings_and_line_ends(encoding: str, lines: list[str], end: str) -> None:
    text = end.join(lines)
    if encoding == "utf-8" and text.startswith("\ufeff"):
        text = text[1:]
        lines[0] = lines[0][1:]
    assert decode_text(ENCODINGS[encoding] + text.encode(encoding)) == "\n".join(lines)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp1251", "shift_jis", "gb18030"])
def test_other_encodings_are_refused(encoding: str) -> None:
    """Whichever: they cannot be told apart."""
    text = {"cp1251": "лиса", "shift_jis": "狐の絵", "gb18030": "狐狸"}.get(encoding, "café Ärger")
    with pytest.raises(ValueError, match=r"^not utf-8 text \(.* in line 3\): save it as UTF-8$"):
        decode_text(b"one\ntwo\n" + text.encode(encoding))
    assert decode_text(text.encode(encoding), encoding) == text


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark(encoding: str) -> None:
    with pytest.raises(ValueError, match="null characters, as UTF-16 does"):
        decode_text("a fox".encode(encoding))


def test_cut_utf_16() -> None:
    with pytest.raises(ValueError, match="not utf-16 text"):
        decode_text("a fox".encode("utf-16")[:-1])
