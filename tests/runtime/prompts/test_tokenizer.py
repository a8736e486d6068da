"""Token ids against transformers' tokenizer, and the cut at 77."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sd2rt.engines.bundle.reader import open_bundle
from sd2rt.export.checkpoints.checkpoint import open_checkpoint
from sd2rt.export.reference import reference_tokenizer
from sd2rt.runtime.prompts.tokenizer import Tokenizer

PROMPTS = [
    "",
    " ",
    "a photograph of an astronaut riding a horse",
    "UPPER Case,  double  spaces\tand\nlines",
    "wow! such! exclaim!!!",
    "naïve café, Ærøskøbing, 北京, 🚀👩‍🚀",
    "it's 1girl's 3.14159 #hash @at (weighted:1.3) [a|b]",
    "<|startoftext|> inside <|endoftext|> too",
    "e\u0301 against \u00e9",
    "word " * 75,
    "word " * 76,
    "x" * 500,
    "\u200b zero width \ufeff bom",
]


@pytest.fixture(scope="module")
def tokenizer(small_bundle: Path) -> Tokenizer:
    return Tokenizer(open_bundle(small_bundle))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_are_those_of_transformers(prompt: str, tokenizer: Tokenizer, small_checkpoint: Path) -> None:
    reference = reference_tokenizer(open_checkpoint(str(small_checkpoint)))
    expected = reference(prompt, padding="max_length", max_length=77, truncation=True).input_ids
    assert tokenizer(prompt).ids.tolist() == expected


def test_the_end_that_does_not_fit_is_reported(tokenizer: Tokenizer) -> None:
    assert tokenizer("word " * 75).cut == ""
    assert tokenizer("word " * 75 + "one more").cut == "one more"
    long = tokenizer("cat " * 25_000)
    assert long.cut == ("cat " * 25_000)[75 * 4 :]
    assert long.ids.shape == (77,)


def test_threads_share_a_tokenizer(tokenizer: Tokenizer) -> None:
    """One syntax reads special tokens in texts, the other does not."""
    text = "a fox! <|endoftext|> and a wolf! <|startoftext|>"
    special, spelled = tokenizer(text).ids.tolist(), tokenizer.words(text)

    def reads(plain: bool) -> bool:
        return all(
            tokenizer(text).ids.tolist() == special if plain else tokenizer.words(text) == spelled
            for _ in range(2000)
        )

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(reads, (True, False, True, False)))


def test_count(tokenizer: Tokenizer) -> None:
    assert [tokenizer.count(text) for text in ("", "a fox", "fox " * 100)] == [0, 2, 100]
