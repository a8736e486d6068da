"""Chunks of 75 tokens, with ids of the published tokenizer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sd2rt.runtime.prompts.a1111.chunks import Chunk, empty_chunk, make_chunks
from sd2rt.runtime.prompts.tokenizer import Tokenizer

from ..prompt_tokenizer import BOS, EOS, PAD, published_tokenizer

A, CAT, DOG, BIG, COMMA, BREAK = 320, 2368, 1929, 1205, 267, 2568

Chunks = Callable[[str], list[Chunk]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return published_tokenizer()


@pytest.fixture(scope="module")
def chunks(tokenizer: Tokenizer) -> Chunks:
    return lambda text: make_chunks(text, tokenizer.words, tokenizer.config, tokenizer.comma)


def padded(*tokens: int) -> list[int]:
    """Start token, tokens, end token, and OpenCLIP's padding."""
    return [BOS, *tokens, EOS, *[PAD] * (75 - len(tokens))]


def ids(chunks: list[Chunk]) -> list[list[int]]:
    return [chunk.ids.tolist() for chunk in chunks]


def weights(chunk: Chunk, count: int) -> list[float]:
    """Weights of the first tokens after the start token; checks that all others are 1."""
    assert chunk.weights.shape == (77,)
    assert chunk.weights[0] == 1
    assert (chunk.weights[1 + count :] == 1).all()
    return [float(weight) for weight in chunk.weights[1 : 1 + count]]


def test_words_and_weights(chunks: Chunks) -> None:
    [chunk] = chunks("a (big:1.3) [cat], dog")
    assert ids([chunk]) == [padded(A, BIG, CAT, COMMA, DOG)]
    assert weights(chunk, 5) == pytest.approx([1, 1.3, 1 / 1.1, 1, 1])
    assert chunk.weighted


def test_empty(chunks: Chunks, tokenizer: Tokenizer) -> None:
    for text in ("", " ", "()"):
        [chunk] = chunks(text)
        assert ids([chunk]) == [padded()] == ids([empty_chunk(tokenizer.config)])
        assert not chunk.weighted


def test_letters_that_stand_for_special_tokens(chunks: Chunks) -> None:
    """As in OpenCLIP's tokenizer; transformers turns every ! into id 0, and <|endoftext|> into the end token."""
    assert ids(chunks("cat! !!")) == [padded(CAT, 256, 748)]
    assert ids(chunks("<|endoftext|>")) == [padded(27, 347, 40786, 4160, 91, 285)]


def test_pieces_are_tokenized_apart(chunks: Chunks) -> None:
    """A weight inside a word splits it: "ca" and "t" are not the token of "cat"."""
    assert ids(chunks("cat")) == [padded(CAT)]
    [chunk] = chunks("ca(t)")
    assert ids([chunk]) == [padded(1684, 339)]
    assert weights(chunk, 2) == pytest.approx([1, 1.1])


def test_75_tokens_are_a_chunk(chunks: Chunks) -> None:
    assert ids(chunks("cat " * 75)) == [[BOS, *[CAT] * 75, EOS]]
    assert ids(chunks("cat " * 76)) == [[BOS, *[CAT] * 75, EOS], padded(CAT)]
    three = chunks("cat " * 100 + "(dog:2) " * 51)
    assert ids(three) == [
        [BOS, *[CAT] * 75, EOS],
        [BOS, *[CAT] * 25, *[DOG] * 50, EOS],
        padded(DOG),
    ]
    assert weights(three[1], 75) == [1] * 25 + [2] * 50
    assert weights(three[2], 1) == [2]


@pytest.mark.parametrize(
    ("before", "after", "length"),
    [
        # A comma followed by 19 tokens is just near enough: those tokens move to the next chunk.
        (55, 19, 56),
        (54, 20, 75),
        (56, 18, 57),
        (74, 0, 75),
        (10, 64, 75),
    ],
)
def test_a_chunk_ends_after_a_comma_among_its_last_20(
    chunks: Chunks, before: int, after: int, length: int
) -> None:
    tokens = [CAT] * before + [COMMA] + [DOG] * (after + 3)
    actual = chunks("cat " * before + ", " + "dog " * after + "(dog:2) dog dog")
    assert ids(actual) == [padded(*tokens[:length]), padded(*tokens[length:])]
    # Weights move with their tokens.
    assert weights(actual[1], len(tokens) - length)[-3:] == [2, 1, 1]


def test_a_comma_is_not_where_a_chunk_ends_before_a_comma(chunks: Chunks) -> None:
    """If the token that does not fit is a comma itself, only that token moves to the next chunk."""
    actual = chunks("cat " * 60 + ", " + "dog " * 14 + ", a")
    assert ids(actual) == [[BOS, *[CAT] * 60, COMMA, *[DOG] * 14, EOS], padded(COMMA, A)]


def test_break(chunks: Chunks) -> None:
    assert ids(chunks("a cat BREAK dog")) == [padded(A, CAT), padded(DOG)]
    # An empty text before BREAK is a chunk, an empty text after it is not.
    assert ids(chunks("BREAK dog")) == [padded(), padded(DOG)]
    assert ids(chunks("dog BREAK")) == [padded(DOG)]
    assert ids(chunks("a BREAK BREAK dog")) == [padded(A), padded(), padded(DOG)]
    [chunk] = chunks("(a BREAK dog)")
    assert ids([chunk]) == [padded(A, BREAK, DOG)]
    assert weights(chunk, 3) == pytest.approx([1.1, -1.1, 1.1])


def test_names_stay_together(tokenizer: Tokenizer) -> None:
    """Names are matched by their tokens in any case, the longest first, and their ids stay in one chunk."""
    named = tokenizer.with_names({"<toy>": (50000, 50001, 50002), "my toy": (50003,), "my": (50004,)})

    def cut(text: str) -> list[list[int]]:
        return ids(make_chunks(text, named.words, named.config, named.comma))

    assert cut("a <Toy> cat") == [padded(A, 50000, 50001, 50002, CAT)]
    assert cut("a MY TOY my cat") == [padded(A, 50003, 50004, CAT)]
    assert cut("cat " * 73 + "<toy>") == [padded(*[CAT] * 73), padded(50000, 50001, 50002)]
    # An embedding that moves to the next chunk keeps all its vectors.
    assert cut("cat " * 60 + ", " + "<toy> " * 4 + "dog dog dog") == [
        padded(*[CAT] * 60, COMMA),
        padded(*[50000, 50001, 50002] * 4, *[DOG] * 3),
    ]
    [weighted] = make_chunks("(<toy>:1.5)", named.words, named.config, named.comma)
    np.testing.assert_array_equal(weighted.weights[:5], [1, 1.5, 1.5, 1.5, 1])
