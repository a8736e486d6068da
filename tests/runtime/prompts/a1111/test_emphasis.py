"""Weights in hidden states, with a fake text encoder whose states are easy to compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.prompts.a1111.chunks import Chunk, make_chunks
from sd2rt.runtime.prompts.a1111.emphasis import emphasize
from sd2rt.runtime.prompts.tokenizer import Tokenizer

from ..prompt_tokenizer import published_tokenizer

D = 3
CAT, DOG = 2368, 1929


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return published_tokenizer()


def states(ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """[77, 3]: a token's id in thousandths, its negative, and 1."""
    unit = ids.astype(np.float32) / 1000
    return np.stack([unit, -unit, np.ones_like(unit)], 1)


def encode(tokenizer: Tokenizer, *texts: str, half: bool = False) -> tuple[NDArray[Any], ...]:
    dtype = np.float16 if half else np.float32
    chunks: dict[str, Sequence[Chunk]] = {
        text: make_chunks(text, tokenizer.words, tokenizer.config, tokenizer.comma) for text in texts
    }
    return emphasize(
        [chunks[text] for text in texts], tokenizer.config, lambda ids: states(ids).astype(dtype)
    )


def test_weights_of_one_change_nothing(tokenizer: Tokenizer) -> None:
    [array] = encode(tokenizer, "cat (dog:1.0)")
    expected = states(np.array([49406, CAT, DOG, 49407, *[0] * 73]))
    np.testing.assert_array_equal(array, expected)
    assert not array.flags.writeable


def test_weights_scale_and_the_mean_stays(tokenizer: Tokenizer) -> None:
    plain, weighted = *encode(tokenizer, "cat dog"), *encode(tokenizer, "(cat:1.5) dog")
    # The columns id and -id cancel, so the weight multiplies the mean by 77.5 / 77.
    factors = np.ones((77, 1))
    factors[1] = 1.5
    np.testing.assert_allclose(weighted, plain * factors * (77 / 77.5), rtol=1e-6)
    assert weighted.mean() == pytest.approx(plain.mean(), rel=1e-5)


def test_the_mean_is_of_one_chunk(tokenizer: Tokenizer) -> None:
    plain = states(np.array([49406, DOG, 49407, *[0] * 74]))
    [array] = encode(tokenizer, "(cat:2) BREAK dog")
    assert array.shape == (154, D)
    np.testing.assert_array_equal(array[77:], plain)
    assert array[1, 2] == pytest.approx(2 * 77 / 78)


def test_texts_that_are_encoded_together_share_a_mean(tokenizer: Tokenizer) -> None:
    """The mean weight over both is (78 + 77) / 154; a text that occurs twice counts twice."""
    first, second = encode(tokenizer, "(cat:2)", "dog")
    assert first[1, 2] == pytest.approx(2 * 154 / 155)
    assert second[1, 2] == pytest.approx(154 / 155)
    first, second, third = encode(tokenizer, "(cat:2)", "dog", "(cat:2)")
    assert first is third
    assert second[1, 2] == pytest.approx(231 / 233)


def test_the_shorter_of_them_is_filled_up(tokenizer: Tokenizer) -> None:
    long, short = encode(tokenizer, "cat BREAK dog", "cat")
    assert long.shape == short.shape == (154, D)
    np.testing.assert_array_equal(short[:77], long[:77])
    np.testing.assert_array_equal(short[77:], states(np.array([49406, 49407, *[0] * 75])))


def test_half_precision_is_kept(tokenizer: Tokenizer) -> None:
    [array] = encode(tokenizer, "(cat:1.5)", half=True)
    assert array.dtype == np.float16
    assert array[1, 2] == np.float16(1.5 * 77 / 77.5)


@pytest.mark.parametrize("weight", ["9" * 400, "9" * 39, "-76"])
def test_weights_that_leave_no_number(tokenizer: Tokenizer, weight: str) -> None:
    """An infinite weight, one beyond float32, and one that makes the mean to divide by 0."""
    with pytest.raises(RequestError, match="values that are not finite: use smaller weights"):
        encode(tokenizer, f"(cat:{weight})")
