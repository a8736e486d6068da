"""Weights of tokens, put into their hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.manifest import Tokenizer as TokenizerConfig
from sd2rt.engines.errors import RequestError
from sd2rt.runtime.prompts.a1111.chunks import Chunk, empty_chunk

Hidden = NDArray[Any]


def emphasize(
    texts: Sequence[Sequence[Chunk]],
    config: TokenizerConfig,
    encode: Callable[[NDArray[np.int64]], Hidden],
) -> tuple[Hidden, ...]:
    """The hidden states of texts that are encoded together, each [77 n, D], read-only.

    A text of fewer chunks than the longest is filled up with empty ones. Every token's states are multiplied by
    its weight, and then all by what brings their mean back to what it was: the mean over every text's chunk of
    one place, as AUTOMATIC1111's "Original" emphasis has it. Where all weights are 1 nothing changes. Texts
    given as one object share one array.

    Args:
        encode: [77] ids to [77, D] hidden states.

    Raises:
        RequestError: the weights leave values that are not finite.
    """
    length = max(len(chunks) for chunks in texts)
    empty = empty_chunk(config)
    counts = {id(chunks): 0 for chunks in texts}
    for chunks in texts:
        counts[id(chunks)] += 1
    filled = {id(chunks): [*chunks, *[empty] * (length - len(chunks))] for chunks in texts}
    parts: dict[int, list[Hidden]] = {text: [] for text in filled}
    for place in range(length):
        column = {text: chunks[place] for text, chunks in filled.items()}
        states = {text: encode(chunk.ids) for text, chunk in column.items()}
        if any(chunk.weighted for chunk in column.values()):
            states = _weighted(column, states, counts)
        for text, array in states.items():
            parts[text].append(array)
    whole: dict[int, Hidden] = {}
    for text, arrays in parts.items():
        whole[text] = arrays[0] if length == 1 else np.concatenate(arrays)
        whole[text].flags.writeable = False
    return tuple(whole[id(chunks)] for chunks in texts)


def _weighted(
    column: dict[int, Chunk], states: dict[int, Hidden], counts: dict[int, int]
) -> dict[int, Hidden]:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scaled = {
            text: states[text].astype(np.float32) * chunk.weights[:, None] for text, chunk in column.items()
        }
        before = sum(counts[text] * array.mean(dtype=np.float64) for text, array in states.items())
        after = sum(counts[text] * array.mean(dtype=np.float64) for text, array in scaled.items())
        ratio = np.float32(np.float64(before) / np.float64(after))
        found = {text: (array * ratio).astype(states[text].dtype) for text, array in scaled.items()}
    if not all(np.isfinite(array).all() for array in found.values()):
        raise RequestError("the prompt's weights leave values that are not finite: give smaller ones")
    return found
