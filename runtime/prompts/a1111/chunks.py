"""A text of any length as chunks of 75 tokens with their weights, by AUTOMATIC1111's rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.manifest import Tokenizer as TokenizerConfig
from sd2rt.runtime.prompts.a1111.attention import parse_attention

BACKTRACK = 20
"""Tokens after the last comma that go to the next chunk together, where the chunk ends among them."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """What the text encoder is given at once."""

    ids: NDArray[np.int64]  # [77]: begin, 75 tokens, end; padding after the first end
    weights: NDArray[np.float32]  # [77]; 1 where there is no token of the text

    @property
    def weighted(self) -> bool:
        return bool((self.weights != 1).any())


Words = Callable[[str], Sequence[Sequence[int]]]
"""A text's tokens; what must not be torn apart, the rows of one embedding, is one item."""


def make_chunks(text: str, words: Words, config: TokenizerConfig, comma: int | None) -> list[Chunk]:
    """Cut a text into chunks, at least one.

    A chunk ends at ``BREAK``, after 75 tokens, or after its last comma where that is among the last 20 of them
    and the next token is no comma.

    Args:
        comma: the token of a comma between words.
    """
    size = config.max_length - 2
    chunks: list[Chunk] = []
    ids: list[int] = []
    weights: list[float] = []
    last_comma: int | None = None

    def end_chunk(kept: int) -> None:
        nonlocal ids, weights, last_comma
        chunks.append(_chunk(ids[:kept], weights[:kept], config))
        ids, weights, last_comma = ids[kept:], weights[kept:], None

    for piece in parse_attention(text):
        if piece.is_break:
            end_chunk(len(ids))
            continue
        for word in words(piece.text):
            if list(word) == [comma]:
                last_comma = len(ids)
            elif len(ids) == size and last_comma is not None and size - last_comma <= BACKTRACK:
                end_chunk(last_comma + 1)
            if len(ids) + len(word) > size:
                end_chunk(len(ids))
            ids += word
            weights += [piece.weight] * len(word)
    if ids or not chunks:
        end_chunk(len(ids))
    return chunks


def empty_chunk(config: TokenizerConfig) -> Chunk:
    """What fills up a text that has fewer chunks than others."""
    return _chunk([], [], config)


def _chunk(ids: list[int], weights: list[float], config: TokenizerConfig) -> Chunk:
    row = np.full(config.max_length, config.pad, np.int64)
    row[: len(ids) + 2] = [config.bos, *ids, config.eos]
    factors = np.ones(config.max_length, np.float32)
    with np.errstate(over="ignore"):
        factors[1 : len(ids) + 1] = weights
    return Chunk(row, factors)
