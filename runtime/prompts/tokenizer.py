"""Convert prompts to the token ids that the text encoder was trained on."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.errors import BundleError
from sd2rt.runtime.prompts.a1111.cleaning import clean

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_COMMA = ",</w>"
_OPENCLIP_PATTERN = (
    r"(?i)<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
"""OpenCLIP's division of a cleaned text. Its special tokens have other names than in transformers."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenized prompt."""

    ids: NDArray[np.int64]  # [77]
    cut: str
    """The end of the prompt that did not fit; empty if all of it did."""


class Tokenizer:
    """A bundle's tokenizer; immutable, :meth:`with_names` makes one with additional names. Threads may share it.

    Raises:
        BundleError: tokenizer.json cannot be read.
    """

    def __init__(self, bundle: Bundle) -> None:
        from tokenizers import Tokenizer as Backend

        self.config = bundle.manifest.tokenizer
        file = self.config.file

        def opening(folder: Path) -> Backend:
            try:
                return Backend.from_file(str(folder / file.path))
            except Exception as error:
                raise BundleError(
                    f"{folder / file.path} is not a tokenizer ({error}): build the bundle again"
                ) from error

        self._backend = bundle.load((file,), opening)
        # Prompts are cut and padded in this class, which can report the text that was cut.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend_with_names = self._backend
        self._openclip = _openclip_backend(self._backend)
        self._ids_of_name: dict[int, tuple[int, ...]] = {}
        self._spellings: list[tuple[list[int], tuple[int, ...]]] = []
        self.comma: int | None = self._backend.token_to_id(_COMMA)

    def with_names(
        self, names: Mapping[str, tuple[int, ...]], a1111_names: Mapping[str, tuple[int, ...]] | None = None
    ) -> Self:
        """Make a tokenizer that replaces each of these names by ids beyond the vocabulary.

        Args:
            a1111_names: names in :meth:`words`; None for the same.
        """
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Backend

        other = copy.copy(self)
        other._backend_with_names = self._backend
        if names:
            other._backend_with_names = Backend.from_str(self._backend.to_str())
            other._backend_with_names.add_tokens([AddedToken(name) for name in names])
        other._ids_of_name = {_token_id(other._backend_with_names, name): ids for name, ids in names.items()}
        spellings = [(self._spell(name), ids) for name, ids in (a1111_names or names).items()]
        # The longest first, because one name can begin with another. A name can have no tokens: that of no prompt.
        other._spellings = sorted((item for item in spellings if item[0]), key=lambda item: -len(item[0]))
        return other

    def has_token(self, name: str) -> bool:
        """Return True if this text is a single token of the vocabulary."""
        return self._backend.token_to_id(name) is not None or len(self._spell(name)) <= 1

    def same_tokens(self, name: str, other: str) -> bool:
        """Return True if two texts have the same tokens."""
        return self._spell(name) == self._spell(other)

    def __call__(self, prompt: str) -> Tokens:
        """Tokenize a prompt as diffusers does: start token, ids, end token, padding to 77; longer prompts are cut.

        As in transformers, every ``!`` is id 0, which is also the padding. Names are matched anywhere in the text and
        in any case, like diffusers' tokens of textual inversions.
        """
        config = self.config
        encoding = self._backend_with_names.encode(prompt, add_special_tokens=False)
        capacity = config.max_length - 2
        ids: list[int] = []
        cut = ""
        for token, (start, _) in zip(encoding.ids, encoding.offsets, strict=True):
            ids += self._ids_of_name.get(token, (token,))
            if len(ids) > capacity:
                cut = prompt[start:]
                break
        row = np.full(config.max_length, config.pad, np.int64)
        ids = ids[:capacity]
        row[: len(ids) + 2] = [config.bos, *ids, config.eos]
        return Tokens(row, cut)

    def count(self, text: str) -> int:
        """Return the number of a text's tokens, without start and end, whether they fit or not."""
        return len(self._spell(text))

    def words(self, text: str) -> list[Sequence[int]]:
        """Tokenize a text as OpenCLIP's own tokenizer does, with all ids of one name as one item.

        The text is cleaned first. Unlike in transformers, ``!`` is an ordinary character. Names are matched by their
        tokens, the longest first, as AUTOMATIC1111 matches embeddings.
        """
        ids = self._spell(text)
        words: list[Sequence[int]] = []
        position = 0
        while position < len(ids):
            for spelling, name_ids in self._spellings:
                if ids[position : position + len(spelling)] == spelling:
                    words.append(name_ids)
                    position += len(spelling)
                    break
            else:
                words.append((ids[position],))
                position += 1
        return words

    def _spell(self, text: str) -> list[int]:
        text = clean(text)
        encoding = self._openclip.encode(text, add_special_tokens=False)
        special_tokens = {"<start_of_text>": self.config.bos, "<end_of_text>": self.config.eos}
        ids: list[int] = []
        tokens = zip(encoding.word_ids, encoding.ids, encoding.offsets, strict=True)
        for _, word in groupby(tokens, key=itemgetter(0)):
            _, word_ids, offsets = zip(*word, strict=True)
            special = special_tokens.get(text[offsets[0][0] : offsets[-1][1]])
            ids += word_ids if special is None else (special,)
        return ids


def _openclip_backend(backend: Backend) -> Backend:
    """Make OpenCLIP's tokenizer with the same vocabulary and merges."""
    from tokenizers import Regex
    from tokenizers import Tokenizer as Backend
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    other = Backend(backend.model)
    other.pre_tokenizer = Sequence(
        [
            Split(Regex(_OPENCLIP_PATTERN), "removed", invert=True),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return other


def _token_id(backend: Backend, token: str) -> int:
    number = backend.token_to_id(token)
    assert number is not None
    return number
