"""Apply token weights to hidden states."""

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
    """Encode texts together to hidden states [77 n, D] each, read-only.

    Texts with fewer chunks than the longest are padded with empty ones. Each token's states are multiplied by its
    weight. Then all states are rescaled to restore their mean, taken over the chunks of all texts at the same
    position: AUTOMATIC1111's "Original" emphasis. Nothing changes if all weights are 1. Texts that are one object
    share one array.

    Args:
        encode: encodes ids [77] to hidden states [77, D].

    Raises:
        RequestError: the weights lead to values that are not finite.
    """
    length = max(len(chunks) for chunks in texts)
    empty = empty_chunk(config)
    counts = {id(chunks): 0 for chunks in texts}
    for chunks in texts:
        counts[id(chunks)] += 1
    padded = {id(chunks): [*chunks, *[empty] * (length - len(chunks))] for chunks in texts}
    parts: dict[int, list[Hidden]] = {text: [] for text in padded}
    for position in range(length):
        column = {text: chunks[position] for text, chunks in padded.items()}
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
        weighted = {text: (array * ratio).astype(states[text].dtype) for text, array in scaled.items()}
    if not all(np.isfinite(array).all() for array in weighted.values()):
        raise RequestError("the prompt's weights lead to values that are not finite: use smaller weights")
    return weighted
