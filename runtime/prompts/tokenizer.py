"""Prompts to token ids, as the text encoder was trained on them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.errors import BundleError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_COMMA = ",</w>"


@dataclass(frozen=True, slots=True)
class Tokens:
    """One prompt, tokenized."""

    ids: NDArray[np.int64]  # [77]
    cut: str
    """The end of the prompt that did not fit, empty where all of it did."""


class Tokenizer:
    """A bundle's tokenizer; it does not change: one that knows further names is another one.

    Raises:
        BundleError: tokenizer.json cannot be read.
    """

    def __init__(self, bundle: Bundle) -> None:
        from tokenizers import Tokenizer as Backend

        self.config = bundle.manifest.tokenizer
        path = bundle.file(self.config.file.path)
        try:
            self._backend = Backend.from_file(str(path))
        except Exception as error:
            raise BundleError(f"{path} is no tokenizer ({error}): build the bundle again") from error
        # Cut and padded here, where the text that is cut can be told.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._naming = self._backend
        self._named: dict[int, tuple[int, ...]] = {}
        self._spelled: list[tuple[list[int], tuple[int, ...]]] = []
        self.comma: int | None = self._backend.token_to_id(_COMMA)

    def naming(self, names: Mapping[str, tuple[int, ...]]) -> Self:
        """The same, but each name stands for ids that the vocabulary does not have."""
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Backend

        other = copy.copy(self)
        other._naming = self._backend
        if names:
            other._naming = Backend.from_str(self._backend.to_str())
            other._naming.add_tokens([AddedToken(name) for name in names])
        other._named = {_id(other._naming, name): ids for name, ids in names.items()}
        spelled = [(self._spell(name), ids) for name, ids in names.items()]
        # The longest first, as one name can begin with another.
        other._spelled = sorted(spelled, key=lambda item: -len(item[0]))
        return other

    def knows(self, name: str) -> bool:
        """Whether the vocabulary has this text as a single token."""
        return self._backend.token_to_id(name) is not None or len(self._spell(name)) <= 1

    def spelled_alike(self, name: str, other: str) -> bool:
        """Whether two texts have the same tokens."""
        return self._spell(name) == self._spell(other)

    def __call__(self, prompt: str) -> Tokens:
        """Begin, the prompt's ids, end, then padding up to 77, as diffusers has them; what exceeds that is cut.

        As in transformers every ``!`` is id 0, which is also the padding. Names are found wherever they stand,
        in any case, as diffusers finds the tokens of textual inversion.
        """
        config = self.config
        encoding = self._naming.encode(prompt, add_special_tokens=False)
        room = config.max_length - 2
        ids: list[int] = []
        cut = ""
        for token, (start, _) in zip(encoding.ids, encoding.offsets, strict=True):
            rows = self._named.get(token, (token,))
            ids += rows
            if len(ids) > room:
                cut = prompt[start:]
                break
        row = np.full(config.max_length, config.pad, np.int64)
        kept = ids[:room]
        row[: len(kept) + 2] = [config.bos, *kept, config.eos]
        return Tokens(row, cut)

    def words(self, text: str) -> list[Sequence[int]]:
        """A text's ids as OpenCLIP's own tokenizer has them, those that belong to one name together.

        It differs from transformers' in that no text stands for a special token: ``!`` is a letter. Names are
        found by their tokens, the longest first, as AUTOMATIC1111 finds embeddings.

        OpenCLIP repairs text first (ftfy's quotes, HTML's entities); here it is taken as it is typed.
        """
        ids = self._spell(text)
        found: list[Sequence[int]] = []
        position = 0
        while position < len(ids):
            for spelling, rows in self._spelled:
                if ids[position : position + len(spelling)] == spelling:
                    found.append(rows)
                    position += len(spelling)
                    break
            else:
                found.append((ids[position],))
                position += 1
        return found

    def _spell(self, text: str) -> list[int]:
        backend = self._backend
        backend.encode_special_tokens = True
        try:
            return backend.encode(text, add_special_tokens=False).ids
        finally:
            backend.encode_special_tokens = False


def _id(backend: Backend, token: str) -> int:
    found = backend.token_to_id(token)
    assert found is not None
    return found
