"""Text conditioning of each call, with a fake text encoder whose states reveal the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from sd2rt.engines.errors import RequestError
from sd2rt.runtime.prompts.encoder import TextEncoder
from sd2rt.runtime.prompts.schedule import schedule_texts
from sd2rt.runtime.prompts.text_conditioning import TextConditioning


class Words:
    """Encode a text as its length, 77 rows for each part between BREAKs; record the calls."""

    def __init__(self) -> None:
        self.skips: list[tuple[str, int]] = []

    def __call__(self, prompt: str, clip_skip: int = 0) -> NDArray[Any]:
        self.skips.append((prompt, clip_skip))
        return np.full((77, 2), len(prompt), np.float32)

    def weighted(self, texts: Sequence[str], clip_skip: int = 0) -> tuple[NDArray[Any], ...]:
        self.skips += [(text, clip_skip) for text in texts]
        rows = 77 * max(text.count("BREAK") + 1 for text in texts)
        states = {text: np.arange(rows, dtype=np.float32)[:, None] + [0, len(text)] for text in texts}
        return tuple(states[text] for text in texts)


def schedule(
    prompt: Any, negative: Any = "", encoder: Words | None = None, **options: Any
) -> tuple[TextConditioning, ...]:
    arguments = {"guided": True, "syntax": "a1111", "clip_skip": 0, "calls": 4, "nominal_calls": 4, **options}
    return schedule_texts(cast(TextEncoder, encoder or Words()), prompt, negative, **arguments)


def text_length(array: NDArray[Any] | None) -> int:
    """Length of the text that an array encodes."""
    assert array is not None
    return int(array[0, 1])


def test_plain_is_one_object_for_all_calls() -> None:
    texts = schedule("a (b:2) AND [c|d]", "no", syntax="plain")
    assert len(texts) == 4
    assert len(set(map(id, texts))) == 1
    assert [text_length(cond) for cond in texts[0].conds] == [17]
    assert text_length(texts[0].uncond) == 2
    assert texts[0].shares == (1.0,)
    [unguided] = schedule("a", "no", syntax="plain", guided=False, calls=1)
    assert unguided.uncond is None
    assert unguided.rows == 1


def test_and_brings_rows_and_shares() -> None:
    texts = schedule("a AND bbb:0.7", "no AND this")
    assert len(set(map(id, texts))) == 1
    assert [text_length(cond) for cond in texts[0].conds] == [1, 4]
    assert texts[0].shares == (1.0, 0.7)
    # AND is an ordinary word in the negative prompt.
    assert text_length(texts[0].uncond) == 11
    assert texts[0].rows == 3


def test_shares_need_the_negative_where_nothing_is_guided_too() -> None:
    for prompt, rows in (("a AND b", 3), ("a:0.5", 2), ("a", 1)):
        assert schedule(prompt, guided=False)[0].rows == rows


def test_edits_change_the_texts_of_calls() -> None:
    texts = schedule("[a:bb:0.25]", "no")
    assert [text_length(call.conds[0]) for call in texts] == [1, 1, 2, 2]
    # "is" detects a change from one call to the next.
    assert texts[0] is texts[1]
    assert texts[2] is texts[3]
    assert texts[1] is not texts[2]
    assert texts[0].uncond is texts[3].uncond


def test_edits_of_every_part_are_independent() -> None:
    texts = schedule("[a|bb] AND ccc")
    assert [tuple(map(text_length, call.conds)) for call in texts] == [(1, 4), (1, 4), (2, 4), (1, 4)]
    alternating = schedule("[a|bb]", "[:dddd:2]")
    assert [(text_length(call.conds[0]), text_length(call.uncond)) for call in alternating] == [
        (1, 0),
        (1, 0),
        (2, 0),
        (1, 4),
    ]
    assert alternating[0] is alternating[1]
    assert alternating[3] is not alternating[1]


def test_lengths_are_made_one() -> None:
    """Sequences of two and three chunks are repeated to six."""
    [texts] = schedule("a BREAK b", "a BREAK b BREAK c", calls=1)
    assert texts.uncond is not None
    assert texts.conds[0].shape == texts.uncond.shape == (462, 2)
    np.testing.assert_array_equal(texts.conds[0][:, 0], np.tile(np.arange(154), 3))
    np.testing.assert_array_equal(texts.uncond[:, 0], np.tile(np.arange(231), 2))
    assert not texts.uncond.flags.writeable


def test_a_shorter_part_repeats_its_last_vector() -> None:
    [texts] = schedule("a AND b BREAK c", calls=1)
    assert texts.conds[0].shape == texts.conds[1].shape == (154, 2)
    np.testing.assert_array_equal(texts.conds[0][:, 0], [*range(77), *[76] * 77])


def test_arrays_that_change_keep_one_length() -> None:
    texts = schedule("[a:b BREAK c:1]", "x BREAK y BREAK z")
    assert {array.shape for call in texts for array in (*call.conds, call.uncond) if array is not None} == {
        (462, 2)
    }


def test_lengths_that_have_no_short_multiple() -> None:
    with pytest.raises(
        RequestError, match=r"has 539 token embeddings and the negative prompt 231: .* common length of 1617"
    ):
        schedule("BREAK ".join("abcdefg"), "a BREAK b BREAK c")
    assert schedule("BREAK ".join("abcdefghijklmnop"))[0].conds[0].shape == (77 * 16, 2)
    with pytest.raises(RequestError, match=r"has 1309 token embeddings .* exceed 1232"):
        schedule("BREAK ".join("abcdefghijklmnopq"))


def test_given_states() -> None:
    """Hidden states are not encoded and may have any length; with the plain syntax, one length."""
    rng = np.random.default_rng(0)
    cond, short = rng.standard_normal((20, 2)), rng.standard_normal((10, 2))
    encoder = Words()
    [texts] = schedule(cond, cond, encoder, syntax="plain", calls=1)
    assert texts.conds[0] is cond
    assert encoder.skips == []
    with pytest.raises(
        RequestError, match=r"has 20 token embeddings and the negative prompt 10: .* of the same length"
    ):
        schedule(cond, short, syntax="plain")
    [texts] = schedule(cond, short, calls=1)
    assert texts.uncond is not None
    np.testing.assert_array_equal(texts.uncond, np.concatenate([short, short]))


def test_clip_skip() -> None:
    """As in diffusers, a plain negative prompt skips no layers; AUTOMATIC1111 skips in both."""
    encoder = Words()
    schedule("a", "no", encoder, syntax="plain", clip_skip=2)
    assert encoder.skips == [("a", 2), ("no", 0)]
    encoder = Words()
    schedule("a", "no", encoder, clip_skip=2)
    assert encoder.skips == [("a", 2), ("no", 2)]
