"""Prompts to the hidden states that the denoiser attends to."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle import Bundle
from sd2rt.engines.errors import BundleError
from sd2rt.engines.session import Array, Engine
from sd2rt.runtime.tokenizer import Tokenizer

_PROMPTS_KEPT = 64
_SHOWN = 400


class TextEncoder:
    """Tokenizer, token table and text encoder engine; remembers the last 64 prompts."""

    def __init__(self, bundle: Bundle, engine: Engine, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._table = _open_table(bundle)
        self._engine = engine
        self._known: OrderedDict[str, tuple[Array, str]] = OrderedDict()

    @property
    def width(self) -> int:
        """D, the numbers a token becomes."""
        return int(self._table.shape[1])

    def __call__(self, prompt: str) -> NDArray[Any]:
        """The hidden states of one prompt, [77, D] in the bundle's precision.

        A prompt of more than 77 tokens is cut, with a warning that shows what was cut. Prompts are encoded one
        at a time, so that what a prompt becomes does not depend on those beside it.
        """
        found = self._known.get(prompt)
        if found is None:
            found = self._encode(prompt)
            self._known[prompt] = found
            if len(self._known) > _PROMPTS_KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(prompt)
        hidden, cut = found
        if cut:
            warnings.warn(
                f"the prompt is longer than {len(hidden)} tokens, this end of it was cut: {_shortened(cut)!r}",
                stacklevel=2,
            )
        return hidden

    def _encode(self, prompt: str) -> tuple[Array, str]:
        tokens = self._tokenizer(prompt)
        session = self._engine.session({"B": 1})
        session.buffers["embeddings"].write(self._table[tokens.ids][None])
        session.launch()
        hidden = session.buffers["hidden"].read()[0]
        hidden.flags.writeable = False
        return hidden, tokens.cut


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
    if len(text) <= 2 * _SHOWN:
        return text
    return f"{text[:_SHOWN]} … {text[-_SHOWN:]}"
