"""Parse attention weights in AUTOMATIC1111's syntax: ``(word)``, ``(word:1.3)``, ``[word]``, ``BREAK``."""

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
    """A piece of text, and the factor of its tokens' hidden states."""

    text: str
    weight: float

    @property
    def is_break(self) -> bool:
        """True if this marks the end of a chunk instead of text."""
        return self.text == "BREAK" and self.weight == _BREAK_WEIGHT


def parse_attention(text: str) -> list[Weighted]:
    """Split a text into pieces of one weight each, at least one.

    ``(a)`` multiplies the weight by 1.1, ``(a:1.3)`` by 1.3, ``[a]`` divides it by 1.1; nested brackets multiply. A
    backslash escapes a bracket or another backslash. A bracket that is never closed extends to the end; a closing
    bracket without an opening one is text, and so is an invalid number, such as 1.2.3 in ``(a:1.2.3)``.

    ``BREAK`` ends a chunk. Inside brackets it is an ordinary word: AUTOMATIC1111 marks it by the weight -1, which the
    brackets then multiply.
    """
    texts: list[str] = []
    breaks: list[int] = []
    factors: list[tuple[slice, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, factor: float) -> None:
        factors.append((slice(start, len(texts)), factor))

    for lexeme in _LEXEME.finditer(text):
        token, number = lexeme[0], lexeme["number"]
        if lexeme["escaped"] is not None:
            texts.append(token[1:])
        elif token in opened:
            opened[token].append(len(texts))
        elif number is not None and opened["("]:
            factor = _number(number)
            if factor is None:
                texts.append(token[:-1])
            multiply(opened["("].pop(), _MORE if factor is None else factor)
        elif token == ")" and opened["("]:
            multiply(opened["("].pop(), _MORE)
        elif token == "]" and opened["["]:
            multiply(opened["["].pop(), _LESS)
        else:
            parts = _BREAK.split(token)
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
    # Multiply in AUTOMATIC1111's order, inner brackets first, so that products are equal bit for bit.
    with np.errstate(over="ignore", invalid="ignore"):
        for pieces, factor in factors:
            weights[pieces] *= factor
    return _merged(texts, weights.tolist())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _merged(texts: list[str], weights: list[float]) -> list[Weighted]:
    """Merge neighbours of equal weight, because their text is tokenized together."""
    merged: list[tuple[list[str], float]] = []
    for piece, weight in zip(texts, weights, strict=True):
        if merged and merged[-1][1] == weight:
            merged[-1][0].append(piece)
        else:
            merged.append(([piece], weight))
    return [Weighted("".join(pieces), weight) for pieces, weight in merged] or [Weighted("", 1.0)]
