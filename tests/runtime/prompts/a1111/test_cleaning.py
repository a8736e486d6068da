"""Tokens of texts that OpenCLIP cleans, against its tokenizer's ids and an independent implementation of it."""

# ruff: noqa: RUF001

from __future__ import annotations

import html
import json
import subprocess
import sys
import unicodedata
from functools import cache
from itertools import pairwise

import ftfy
import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from sd2rt.engines.demo.files import TOKENIZER
from sd2rt.runtime.prompts.tokenizer import Tokenizer
from tests.runtime.prompts.prompt_tokenizer import BOS, EOS, published_tokenizer

LIVE = [
    ("a “quoted” fox’s den", [320, 257, 27706, 257, 3240, 568, 1181]),
    ("it’s `fine´ – really…", [585, 568, 319, 3797, 12559, 1224, 1414, 959]),
    ("cats &amp; dogs", [3989, 261, 3255]),
    ("a &amp;lt;b&amp;gt; tag", [320, 283, 321, 285, 3640]),
    ("salt &amp;amp;amp; pepper", [6611, 261, 8253]),
    ("&eacute;t&#xe9; &#39;s", [3459, 39694, 568]),
    ("ﬁne ﬂuﬀy oﬃce", [3797, 17054, 2171]),
    ("\uff26\uff35\uff2c\uff2c\u3000ｗｉｄｔｈ１２", [1476, 23571, 272, 273]),
    ("cafÃ© schÃ¶n", [15304, 844, 7255, 333]),
    ("â€œmojibakeâ€\x9d", [257, 617, 3252, 11878, 257]),
    ("cafe\u0301 e\u0301", [15304, 4166]),
    ("J\u030c and ǰ", [329, 136, 490, 537, 131, 364]),
    ("ΑΣ ΑΣ", [138, 109, 139, 480, 138, 109, 139, 480]),
    ("İstanbul Straße", [328, 16384, 11231, 1894, 127, 253, 324]),
    ("a\u200bb \ufeffc\xadd", [320, 9844, 321, 322, 22618, 323]),
    ("\x1b[31mred\x1b[0m \x07bell", [736, 3718]),
    ("tab\tnew\nline\r\nend  two\u2003em", [14724, 686, 1148, 806, 1237, 2270]),
    ("<start_of_text> a <END_OF_TEXT>", [49406, 320, 49407]),
    ("wow! such!", [2781, 256, 2046, 256]),
    ("<|startoftext|>", [27, 347, 993, 6659, 4160, 91, 285]),
    ("&nbsp;&copy; 2020", [5811, 273, 271, 273, 271]),
    ("1girl, 3.14 ½ ²", [272, 1611, 267, 274, 269, 272, 275, 33613, 41175]),
    ("北京 🚀👩\u200d🚀", [161, 234, 245, 21078, 361, 22400, 26304, 13542]),
    ("a < b &lt; c", [320, 283, 321, 283, 322]),
    ("we'LL 'twas 'S", [649, 1342, 713, 739, 568]),
    ("", []),
    (" \n ", []),
    ("& &amp &notit;", [261, 261, 126, 361, 585, 282]),
    ("masterpiece， best quality、 ８ｋ", [12066, 267, 949, 3027, 45262, 279, 330]),
    ("Ĳ ĳ ﬆ", [72, 329, 72, 329, 545]),
]
"""Results of ``SimpleTokenizer().encode`` of open_clip_torch 3.3.0, with ftfy 6.3.1."""

PIECES = [
    *"“”’…–´ﬁﬃﬆＡＢｃ９éÉßſΣİ½²٣京🚀👩!,1<>'",
    *(
        "&amp;",
        "&amp;lt;",
        "&lt",
        "&nbsp;",
        "&#39;",
        "&#x1c;",
        "&",
        "Ã©",
        "â€œ",
        "ΑΣ",
        "!!",
        "'S",
        "'ll",
        "a",
        "Fox",
    ),
    *("<start_of_text>", "<END_OF_TEXT>", "<|endoftext|>"),
]
INVISIBLE = [*" \t\n\r\x0b\x00\x07\x1c\x7f\x85\xa0\xad\u0301\u2003\u2028\u200b\u200d\u3000\ufeff", "\x1b[31m"]


@cache
def tokenizer() -> Tokenizer:
    return published_tokenizer()


def words(text: str) -> list[int]:
    return [token for word in tokenizer().words(text) for token in word]


@pytest.mark.parametrize(("text", "expected"), LIVE)
def test_ids_are_those_of_openclip(text: str, expected: list[int]) -> None:
    assert words(text) == expected


@cache
def vocabulary() -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    model = json.loads(TOKENIZER.read_text(encoding="utf-8"))["model"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return model["vocab"], {(left, right): rank for rank, (left, right) in enumerate(pairs)}


@cache
def byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-ins for bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def byte_pairs(piece: str) -> list[int]:
    """Merge the pair of the lowest rank until there is none."""
    ids, ranks = vocabulary()
    symbols = [byte_characters()[byte] for byte in piece.encode()]
    symbols[-1] += "</w>"
    while len(symbols) > 1:
        rank, left, right = min((ranks.get(pair, len(ranks)), *pair) for pair in pairwise(symbols))
        if rank == len(ranks):
            break
        merged: list[str] = []
        for symbol in symbols:
            if merged and (merged[-1], symbol) == (left, right):
                merged[-1] += symbol
            else:
                merged.append(symbol)
        symbols = merged
    return [ids[symbol] for symbol in symbols]


def expected_ids(text: str) -> list[int]:
    """OpenCLIP's published steps: ftfy, HTML entities twice, white space, lower case, division, byte pairs."""
    text = " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()
    special = {"<start_of_text>": [BOS], "<end_of_text>": [EOS]}
    pattern = r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
    pieces = regex.findall(pattern, text, regex.IGNORECASE)
    return [token for piece in pieces for token in special.get(piece) or byte_pairs(piece)]


@given(st.lists(st.sampled_from([*PIECES, *INVISIBLE]), max_size=12).map("".join))
@example("")
def test_mixtures_of_what_is_cleaned(text: str) -> None:
    assert words(text) == expected_ids(text)


@given(st.text(max_size=30))
def test_any_text(text: str) -> None:
    # Regular expressions know characters up to different versions of Unicode, and fold U+0345 differently.
    if all(unicodedata.category(character) != "Cn" for character in text) and "\u0345" not in text:
        assert words(text) == expected_ids(text)


@given(st.text(st.characters(min_codepoint=0, max_codepoint=127), max_size=60))
def test_ascii(text: str) -> None:
    """Most ASCII texts do not need ftfy, and get the same tokens without it."""
    assert words(text) == expected_ids(text)


def test_plain_ascii_does_not_import_ftfy() -> None:
    program = """
import sys
from sd2rt.runtime.prompts.a1111.cleaning import clean
assert clean(" A (red:1.3) fox,\\r\\n\\tit's ") == "a (red:1.3) fox, it's" and "ftfy" not in sys.modules
assert clean("\u201cA\u201d") == '"a"' and "ftfy" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_syntaxes_follow_different_tokenizers() -> None:
    """Plain prompts are not cleaned, as in transformers 5."""
    for text in ("“fox”", "a &amp; b", "ﬁne", "ＦＵＬＬ"):
        plain = tokenizer()(text).ids
        assert plain[1 : 1 + len(words(text))].tolist() != words(text)
