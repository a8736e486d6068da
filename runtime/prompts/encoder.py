"""Encode prompts to the hidden states that the denoiser attends to."""

from __future__ import annotations

import errno
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.errors import BundleError, RequestError, engine_error
from sd2rt.engines.interface import Array, Engine
from sd2rt.engines.printable import repr_of, shown
from sd2rt.runtime.prompts.a1111.chunks import make_chunks
from sd2rt.runtime.prompts.a1111.emphasis import emphasize
from sd2rt.runtime.prompts.textual_inversion import Embedding, check_embedding
from sd2rt.runtime.prompts.tokenizer import Tokenizer, Tokens

Turn = Callable[[], AbstractContextManager[None]]

_CACHE_SIZE = 64
_MAX_SHOWN = 400


class TextEncoder:
    """Tokenizer, token embedding table and text encoder engine, with an LRU cache of the last 64 texts or chunks.

    Threads may encode at the same time.

    Args:
        turn: makes a context in which the engine's buffers belong to the calling thread.
    """

    def __init__(
        self, bundle: Bundle, engine: Engine, tokenizer: Tokenizer, turn: Turn = nullcontext
    ) -> None:
        self._manifest = bundle.manifest
        self._tokenizer = tokenizer
        self._table = _open_table(bundle)
        self._engine, self._turn = engine, turn
        self._cache_lock = threading.Lock()
        self._cache: OrderedDict[tuple[bytes, int], Array] = OrderedDict()
        self._embeddings: dict[str, tuple[Embedding, tuple[int, ...]]] = {}
        self._rows: dict[int, Array] = {}
        self._words: dict[str, list[int]] = {}
        """Names of embeddings that are tokens of the vocabulary, with these: only the syntax ``a1111`` uses them."""
        self._next_id = len(self._table)
        self._used: set[int] = set()

    @property
    def width(self) -> int:
        """Width D of the token embeddings."""
        return int(self._table.shape[1])

    @property
    def embeddings(self) -> tuple[Embedding, ...]:
        """Loaded textual inversions, in the order in which they were added."""
        return tuple(embedding for embedding, _ in self._embeddings.values())

    def count_tokens(self, text: str) -> int:
        """Return the number of a text's tokens, without start and end, whether they fit or not."""
        return self._tokenizer.count(text)

    @property
    def unused_embeddings(self) -> tuple[Embedding, ...]:
        """Those that no text has named since they were added."""
        return tuple(embedding for embedding, ids in self._embeddings.values() if self._used.isdisjoint(ids))

    def add_embedding(self, embedding: Embedding) -> None:
        """Add a textual inversion: prompts then use its vectors for its token.

        Raises:
            RequestError: the vectors do not fit, or the token is in use.
        """
        check_embedding(embedding, self._manifest)
        name = embedding.token
        # AUTOMATIC1111 replaces words by embeddings of files that are named like them; diffusers refuses such names.
        if self._tokenizer.has_token(name) and (
            embedding.file_name is None or not self._tokenizer.count(embedding.file_name)
        ):
            raise RequestError(f"{name!r} is a token of the vocabulary: give the embedding another name")
        for other in self.embeddings:
            if self._tokenizer.same_tokens(name, other.token) or self._tokenizer.same_tokens(
                embedding.a1111_name, other.a1111_name
            ):
                raise RequestError(
                    f"an embedding named {other.token!r} is already loaded: give {name!r} another name, or unload "
                    "that one"
                )
        # Ids are never reused, so cached states of a removed embedding cannot be mistaken for those of a new one.
        ids = tuple(range(self._next_id, self._next_id + len(embedding.vectors)))
        self._next_id += len(ids)
        self._rows |= zip(ids, embedding.vectors.astype(self._table.dtype), strict=True)
        self._embeddings[name] = embedding, ids
        if self._tokenizer.has_token(name):
            self._words[name] = self._before_end(self._tokenizer(name))
        self._update_tokenizer()

    def remove_embedding(self, token: str) -> None:
        """Remove a textual inversion.

        Raises:
            RequestError: no textual inversion of that name is loaded.
        """
        if not isinstance(token, str) or token not in self._embeddings:
            loaded = ", ".join(self._embeddings) or "none"
            raise RequestError(f"no embedding is named {shown(repr_of(token))}; loaded: {loaded}")
        _, ids = self._embeddings.pop(token)
        self._words.pop(token, None)
        for row in ids:
            del self._rows[row]
        self._update_tokenizer()

    def replace_engine(self, engine: Engine) -> None:
        """Switch to another engine of the part, and clear the cache."""
        self._engine = engine
        self.clear_cache()

    def clear_cache(self) -> None:
        """Clear the cache of encoded texts."""
        with self._cache_lock:
            self._cache.clear()

    def close(self) -> None:
        """Release the embedding table, which is mapped into memory, and the cache of encoded texts."""
        self._table = self._table[:0].copy()
        self.clear_cache()

    def _update_tokenizer(self) -> None:
        self._tokenizer = self._tokenizer.with_names(
            {name: ids for name, (_, ids) in self._embeddings.items() if name not in self._words},
            {embedding.a1111_name: ids for embedding, ids in self._embeddings.values()},
        )

    def __call__(self, prompt: str, clip_skip: int = 0) -> NDArray[Any]:
        """Encode one prompt as diffusers does, to hidden states [77, D] in the bundle's precision.

        A prompt of more than 77 tokens is cut, with a warning that shows its lost end. Prompts are encoded one at a
        time, so that the result does not depend on other prompts of the batch.

        Args:
            clip_skip: number of layers to skip at the end of the text encoder.
        """
        tokens = self._tokenize(prompt)
        if tokens.cut:
            warnings.warn(
                f"the prompt is longer than {len(tokens.ids)} tokens, its end was cut off: "
                f"{_shortened(tokens.cut)!r}",
                stacklevel=2,
            )
        return self._hidden(tokens.ids, clip_skip)

    def weighted(self, texts: Sequence[str], clip_skip: int = 0) -> tuple[NDArray[Any], ...]:
        """Encode the texts that a prompt alternates between, as AUTOMATIC1111 does, to hidden states [77 n, D] each.

        The texts may contain weights and ``BREAK``, and are split into chunks of 75 tokens. All are padded to the n
        chunks of the longest. Weighted texts are rescaled to restore the mean over all texts. Equal texts share one
        array.

        Raises:
            RequestError: the weights lead to values that are not finite.
        """
        tokenizer = self._tokenizer
        chunks = {
            text: make_chunks(text, tokenizer.words, tokenizer.config, tokenizer.comma) for text in texts
        }
        return emphasize(
            [chunks[text] for text in texts], tokenizer.config, lambda ids: self._hidden(ids, clip_skip)
        )

    def _tokenize(self, prompt: str) -> Tokens:
        tokens = self._tokenizer(prompt)
        ids = self._before_end(tokens) if self._words else []
        for name, word in self._words.items():
            if any(ids[start : start + len(word)] == word for start in range(len(ids) - len(word) + 1)):
                raise RequestError(
                    f"the prompt contains {name!r}, a token of the vocabulary and an embedding: give the embedding "
                    f"another name, or use the syntax a1111, which replaces the word {self._a1111_name(name)!r}"
                )
        return tokens

    def _before_end(self, tokens: Tokens) -> list[int]:
        """Return a text's ids without start, end and padding."""
        ids: list[int] = tokens.ids.tolist()
        return ids[1 : ids.index(self._manifest.tokenizer.eos, 1)]

    def _a1111_name(self, name: str) -> str:
        return self._embeddings[name][0].a1111_name

    def _hidden(self, ids: NDArray[np.int64], skip: int) -> Array:
        if self._embeddings:
            self._used.update(ids[ids >= len(self._table)].tolist())
        key = ids.tobytes(), skip
        with self._cache_lock:
            hidden = self._cache.get(key)
            if hidden is not None:
                self._cache.move_to_end(key)
                return hidden
        with self._turn():
            hidden = self._encode(ids, skip)
        with self._cache_lock:
            self._cache[key] = hidden
            if len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        return hidden

    def launch(self) -> None:
        """Run the engine once, whatever is cached, to have its memory allocated."""
        with self._turn():
            self._encode(np.zeros(self._manifest.tokenizer.max_length, np.int64), 0)

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

    def opening(folder: Path) -> Array:
        try:
            return cast(Array, np.load(folder / config.file.path, mmap_mode="r"))
        except (EOFError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                memory = MemoryError(error.strerror)
                raise engine_error(f"{path} cannot be mapped into memory", memory) from None
            raise BundleError(f"{path} is not a NumPy array ({error}): build the bundle again") from None

    table = bundle.load((config.file,), opening)
    if table.shape != (config.tokens, config.width) or table.dtype != config.dtype:
        raise BundleError(
            f"{path} holds {table.dtype}{list(table.shape)}, but the manifest says "
            f"{config.dtype}{[config.tokens, config.width]}: build the bundle again"
        )
    return table


def _shortened(text: str) -> str:
    if len(text) <= 2 * _MAX_SHOWN:
        return text
    return f"{text[:_MAX_SHOWN]} … {text[-_MAX_SHOWN:]}"
