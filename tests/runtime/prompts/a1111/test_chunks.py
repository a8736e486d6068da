"""Chunks of 75 tokens, on ids of the published tokenizer written out."""

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
    """Begin, the tokens, one end, and OpenCLIP's padding after it."""
    return [BOS, *tokens, EOS, *[PAD] * (75 - len(tokens))]


def ids(chunks: list[Chunk]) -> list[list[int]]:
    return [chunk.ids.tolist() for chunk in chunks]


def weights(chunk: Chunk, count: int) -> list[float]:
    """Those of the first tokens after begin; that of begin and all that follow are 1."""
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
    """As OpenCLIP's own tokenizer has them: transformers' makes id 0 of every !, and an end of <|endoftext|>."""
    assert ids(chunks("cat! !!")) == [padded(CAT, 256, 748)]
    assert ids(chunks("<|endoftext|>")) == [padded(27, 347, 40786, 4160, 91, 285)]


def test_pieces_are_tokenized_apart(chunks: Chunks) -> None:
    """A weight inside of a word splits it: "ca" and "t" are not the token of "cat"."""
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
    ("before", "after", "kept"),
    [
        # A comma that 19 tokens follow is the first that is near enough: they go to the next chunk.
        (55, 19, 56),
        (54, 20, 75),
        (56, 18, 57),
        (74, 0, 75),
        (10, 64, 75),
    ],
)
def test_a_chunk_ends_after_a_comma_among_its_last_20(
    chunks: Chunks, before: int, after: int, kept: int
) -> None:
    tokens = [CAT] * before + [COMMA] + [DOG] * (after + 3)
    actual = chunks("cat " * before + ", " + "dog " * after + "(dog:2) dog dog")
    assert ids(actual) == [padded(*tokens[:kept]), padded(*tokens[kept:])]
    # A weight goes with its token.
    assert weights(actual[1], len(tokens) - kept)[-3:] == [2, 1, 1]


def test_a_comma_is_not_where_a_chunk_ends_before_a_comma(chunks: Chunks) -> None:
    """Of two, the first is near the end, but the token that does not fit is a comma: only it goes on."""
    actual = chunks("cat " * 60 + ", " + "dog " * 14 + ", a")
    assert ids(actual) == [[BOS, *[CAT] * 60, COMMA, *[DOG] * 14, EOS], padded(COMMA, A)]


def test_break(chunks: Chunks) -> None:
    assert ids(chunks("a cat BREAK dog")) == [padded(A, CAT), padded(DOG)]
    # Nothing to say before it is a chunk too, nothing after it is none.
    assert ids(chunks("BREAK dog")) == [padded(), padded(DOG)]
    assert ids(chunks("dog BREAK")) == [padded(DOG)]
    assert ids(chunks("a BREAK BREAK dog")) == [padded(A), padded(), padded(DOG)]
    [chunk] = chunks("(a BREAK dog)")
    assert ids([chunk]) == [padded(A, BREAK, DOG)]
    assert weights(chunk, 3) == pytest.approx([1.1, -1.1, 1.1])


def test_names_stay_together(tokenizer: Tokenizer) -> None:
    """Found by their tokens in any case, the longest first; their rows are not torn apart."""
    naming = tokenizer.naming({"<toy>": (50000, 50001, 50002), "my toy": (50003,), "my": (50004,)})

    def cut(text: str) -> list[list[int]]:
        return ids(make_chunks(text, naming.words, naming.config, naming.comma))

    assert cut("a <Toy> cat") == [padded(A, 50000, 50001, 50002, CAT)]
    assert cut("a MY TOY my cat") == [padded(A, 50003, 50004, CAT)]
    assert cut("cat " * 73 + "<toy>") == [padded(*[CAT] * 73), padded(50000, 50001, 50002)]
    # What goes to the next chunk after a comma takes its vectors along.
    assert cut("cat " * 60 + ", " + "<toy> " * 4 + "dog dog dog") == [
        padded(*[CAT] * 60, COMMA),
        padded(*[50000, 50001, 50002] * 4, *[DOG] * 3),
    ]
    [weighted] = make_chunks("(<toy>:1.5)", naming.words, naming.config, naming.comma)
    np.testing.assert_array_equal(weighted.weights[:5], [1, 1.5, 1.5, 1.5, 1])
