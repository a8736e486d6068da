"""Prompts to the hidden states that the denoiser attends to."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.errors import BundleError, RequestError
from sd2rt.engines.interface import Array, Engine
from sd2rt.runtime.prompts.a1111.chunks import make_chunks
from sd2rt.runtime.prompts.a1111.emphasis import emphasize
from sd2rt.runtime.prompts.textual_inversion import Embedding, check_embedding
from sd2rt.runtime.prompts.tokenizer import Tokenizer, Tokens

_KEPT = 64
_LONGEST_SHOWN = 400


class TextEncoder:
    """Tokenizer, token table and text encoder engine; remembers the last 64 texts, or chunks of longer ones."""

    def __init__(self, bundle: Bundle, engine: Engine, tokenizer: Tokenizer) -> None:
        self._manifest = bundle.manifest
        self._tokenizer = tokenizer
        self._table = _open_table(bundle)
        self._engine = engine
        self._known: OrderedDict[tuple[bytes, int], Array] = OrderedDict()
        self._embeddings: dict[str, tuple[Embedding, tuple[int, ...]]] = {}
        self._rows: dict[int, Array] = {}
        self._next_id = len(self._table)

    @property
    def width(self) -> int:
        """D, the numbers a token becomes."""
        return int(self._table.shape[1])

    @property
    def embeddings(self) -> tuple[Embedding, ...]:
        """What names stand for vectors of their own, in the order in which they were added."""
        return tuple(embedding for embedding, _ in self._embeddings.values())

    def add_embedding(self, embedding: Embedding) -> None:
        """Let a name stand for the vectors of a textual inversion.

        Raises:
            RequestError: the vectors do not fit, or the name is taken.
        """
        check_embedding(embedding, self._manifest)
        name = embedding.token
        if self._tokenizer.knows(name):
            raise RequestError(f"{name!r} is a token of the vocabulary: give the embedding another name")
        for other in self._embeddings:
            if self._tokenizer.spelled_alike(name, other):
                raise RequestError(
                    f"an embedding is named {other!r} already: give {name!r} another name, or unload that one"
                )
        # Ids are never given twice: what is remembered of one embedding cannot be taken for another's.
        ids = tuple(range(self._next_id, self._next_id + len(embedding.vectors)))
        self._next_id += len(ids)
        self._rows |= zip(ids, embedding.vectors.astype(self._table.dtype), strict=True)
        self._embeddings[name] = embedding, ids
        self._rename()

    def remove_embedding(self, token: str) -> None:
        """Forget a name.

        Raises:
            RequestError: there is none of that name.
        """
        if token not in self._embeddings:
            known = ", ".join(self._embeddings) or "none"
            raise RequestError(f"no embedding is named {token!r}: {known} is loaded")
        _, ids = self._embeddings.pop(token)
        for row in ids:
            del self._rows[row]
        self._rename()

    def replace_engine(self, engine: Engine) -> None:
        """Go on with another engine of the part; what the old one has made is forgotten."""
        self._engine = engine
        self.forget()

    def forget(self) -> None:
        """Encode texts anew that were encoded before."""
        self._known.clear()

    def _rename(self) -> None:
        self._tokenizer = self._tokenizer.naming({name: ids for name, (_, ids) in self._embeddings.items()})

    def __call__(self, prompt: str, clip_skip: int = 0) -> NDArray[Any]:
        """The hidden states of one prompt as diffusers makes them, [77, D] in the bundle's precision.

        A prompt of more than 77 tokens is cut, with a warning that shows what was cut. Prompts are encoded one
        at a time, so that what a prompt becomes does not depend on those beside it.

        Args:
            clip_skip: layers of the text encoder that are left out at the end.
        """
        tokens = self._tokenize(prompt)
        if tokens.cut:
            warnings.warn(
                f"the prompt is longer than {len(tokens.ids)} tokens, this end of it was cut: "
                f"{_shortened(tokens.cut)!r}",
                stacklevel=2,
            )
        return self._hidden(tokens.ids, clip_skip)

    def weighted(self, texts: Sequence[str], clip_skip: int = 0) -> tuple[NDArray[Any], ...]:
        """The hidden states of texts that one prompt says in turns, as AUTOMATIC1111 makes them: each [77 n, D].

        Weights, ``BREAK`` and chunks of 75 tokens are read from the texts. All get the n of the longest, and
        share in each other's mean; equal texts share one array.

        Raises:
            RequestError: the weights leave values that are not finite.
        """
        tokenizer = self._tokenizer
        chunks = {
            text: make_chunks(text, tokenizer.words, tokenizer.config, tokenizer.comma) for text in texts
        }
        return emphasize(
            [chunks[text] for text in texts], tokenizer.config, lambda ids: self._hidden(ids, clip_skip)
        )

    def _tokenize(self, prompt: str) -> Tokens:
        return self._tokenizer(prompt)

    def _hidden(self, ids: NDArray[np.int64], skip: int) -> Array:
        key = ids.tobytes(), skip
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._encode(ids, skip)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return found

    def _encode(self, ids: NDArray[np.int64], skip: int) -> Array:
        added = ids >= len(self._table)
        embeddings = self._table[np.where(added, 0, ids)]
        for position in np.flatnonzero(added):
            embeddings[position] = self._rows[int(ids[position])]
        session = self._engine.session({"B": 1})
        session.buffers["embeddings"].write(embeddings[None])
        session.buffers["skip"].write(np.array([skip]))
        session.launch()
        hidden: Array = session.buffers["hidden"].read()[0]
        hidden.flags.writeable = False
        return hidden


def _open_table(bundle: Bundle) -> Array:
    config = bundle.manifest.embeddings
    path = bundle.file(config.file.path)
    try:
        table = np.load(path, mmap_mode="r")
    except (EOFError, OSError, ValueError) as error:
        raise BundleError(f"{path} is no array ({error}): build the bundle again") from None
    if table.shape != (config.tokens, config.width) or table.dtype != config.dtype:
        raise BundleError(
            f"{path} holds {table.dtype}{list(table.shape)}, its manifest says "
            f"{config.dtype}{[config.tokens, config.width]}: build the bundle again"
        )
    return cast(Array, table)


def _shortened(text: str) -> str:
    if len(text) <= 2 * _LONGEST_SHOWN:
        return text
    return f"{text[:_LONGEST_SHOWN]} … {text[-_LONGEST_SHOWN:]}"
