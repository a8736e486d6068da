"""Split texts of any length into chunks of 75 weighted tokens, by AUTOMATIC1111's rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.manifest import Tokenizer as TokenizerConfig
from sd2rt.runtime.prompts.a1111.attention import parse_attention

BACKTRACK = 20
"""The most tokens after a chunk's last comma that move to the next chunk when the chunk is full."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Input of one call of the text encoder."""

    ids: NDArray[np.int64]  # [77]: start token, up to 75 tokens, end token, padding
    weights: NDArray[np.float32]  # [77]; 1 for special tokens and padding

    @property
    def weighted(self) -> bool:
        return bool((self.weights != 1).any())


Words = Callable[[str], Sequence[Sequence[int]]]
"""Function from a text to its tokens; ids that must stay together, of one embedding, are one item."""


def make_chunks(text: str, words: Words, config: TokenizerConfig, comma: int | None) -> list[Chunk]:
    """Split a text into chunks, at least one.

    A chunk ends at ``BREAK`` or after 75 tokens. If one of the last 20 is a comma and the next token is not, it ends
    after that comma instead.

    Args:
        comma: id of the comma token.
    """
    size = config.max_length - 2
    chunks: list[Chunk] = []
    ids: list[int] = []
    weights: list[float] = []
    last_comma: int | None = None

    def end_chunk(length: int) -> None:
        nonlocal ids, weights, last_comma
        chunks.append(_chunk(ids[:length], weights[:length], config))
        ids, weights, last_comma = ids[length:], weights[length:], None

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
    """Make a chunk without tokens, to pad a text with fewer chunks than others."""
    return _chunk([], [], config)


def _chunk(ids: list[int], weights: list[float], config: TokenizerConfig) -> Chunk:
    row = np.full(config.max_length, config.pad, np.int64)
    row[: len(ids) + 2] = [config.bos, *ids, config.eos]
    factors = np.ones(config.max_length, np.float32)
    with np.errstate(over="ignore"):
        factors[1 : len(ids) + 1] = weights
    return Chunk(row, factors)
