"""Weights of the parts of a text, by AUTOMATIC1111's rules: ``(word)``, ``(word:1.3)``, ``[word]``, ``BREAK``."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

_MORE = 1.1
_LESS = 1 / 1.1

_LEXEME = re.compile(
    r"""
    (?P<escaped> \\ [\\()\[\]]? )
    | : \s* (?P<number> [+-]?[.\d]+ ) \s* \)
    | [()\[\]]
    | [^\\()\[\]:]+
    | :
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")
_BREAK_WEIGHT = -1.0


@dataclass(frozen=True, slots=True)
class Weighted:
    """A piece of text, and what the hidden states of its tokens are multiplied by."""

    text: str
    weight: float

    @property
    def is_break(self) -> bool:
        """Whether this is no text, but the end of a chunk."""
        return self.text == "BREAK" and self.weight == _BREAK_WEIGHT


def parse_attention(text: str) -> list[Weighted]:
    """A text in pieces of one weight each, at least one.

    ``(a)`` is 1.1 times as strong, ``(a:1.3)`` 1.3 times, ``[a]`` 1.1 times as weak; nested ones multiply. A
    backslash makes a bracket, or another backslash, a letter. A bracket that is never closed reaches to the end;
    one that closes what was not opened is a letter. What is no number, such as the 1.2.3 of ``(a:1.2.3)``, is
    text.

    ``BREAK`` ends a chunk, but is a word between brackets: AUTOMATIC1111 marks it by the weight -1, which
    brackets multiply.
    """
    texts: list[str] = []
    breaks: list[int] = []
    factors: list[tuple[slice, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, factor: float) -> None:
        factors.append((slice(start, len(texts)), factor))

    for lexeme in _LEXEME.finditer(text):
        found, number = lexeme[0], lexeme["number"]
        if lexeme["escaped"] is not None:
            texts.append(found[1:])
        elif found in opened:
            opened[found].append(len(texts))
        elif number is not None and opened["("]:
            factor = _number(number)
            if factor is None:
                texts.append(found[:-1])
            multiply(opened["("].pop(), _MORE if factor is None else factor)
        elif found == ")" and opened["("]:
            multiply(opened["("].pop(), _MORE)
        elif found == "]" and opened["["]:
            multiply(opened["["].pop(), _LESS)
        else:
            parts = _BREAK.split(found)
            for index, part in enumerate(parts):
                if index > 0:
                    breaks.append(len(texts))
                    texts.append("BREAK")
                    part = part.lstrip()
                texts.append(part if index == len(parts) - 1 else part.rstrip())
    for bracket, factor in (("(", _MORE), ("[", _LESS)):
        for start in opened[bracket]:
            multiply(start, factor)
    weights = np.ones(len(texts))
    weights[breaks] = _BREAK_WEIGHT
    # In AUTOMATIC1111's order, inner brackets first: the products are equal to the last bit.
    with np.errstate(over="ignore", invalid="ignore"):
        for where, factor in factors:
            weights[where] *= factor
    return _merged(texts, weights.tolist())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _merged(texts: list[str], weights: list[float]) -> list[Weighted]:
    """Neighbours of one weight as one piece: what they say is tokenized together."""
    merged: list[tuple[list[str], float]] = []
    for piece, weight in zip(texts, weights, strict=True):
        if merged and merged[-1][1] == weight:
            merged[-1][0].append(piece)
        else:
            merged.append(([piece], weight))
    return [Weighted("".join(pieces), weight) for pieces, weight in merged] or [Weighted("", 1.0)]
