"""Prompts to token ids, as the text encoder was trained on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle import Bundle
from sd2rt.engines.errors import BundleError


@dataclass(frozen=True, slots=True)
class Tokens:
    """One prompt, tokenized."""

    ids: NDArray[np.int64]  # [77]
    cut: str
    """The end of the prompt that did not fit, empty where all of it did."""


class Tokenizer:
    """A bundle's tokenizer: begin, the prompt's ids, end, then padding up to 77.

    As in transformers every ``!`` is id 0, which is also the padding; OpenCLIP's own tokenizer differs there.

    Raises:
        BundleError: tokenizer.json cannot be read.
    """

    def __init__(self, bundle: Bundle) -> None:
        from tokenizers import Tokenizer as Backend

        self._config = bundle.manifest.tokenizer
        path = bundle.file(self._config.file.path)
        try:
            self._backend = Backend.from_file(str(path))
        except Exception as error:
            raise BundleError(f"{path} is no tokenizer ({error}): build the bundle again") from error
        # Cut and padded here, where the text that is cut can be told.
        self._backend.no_truncation()
        self._backend.no_padding()

    def __call__(self, prompt: str) -> Tokens:
        """Tokenize one prompt, cutting what exceeds the length that the text encoder takes."""
        config = self._config
        encoding = self._backend.encode(prompt, add_special_tokens=False)
        room = config.max_length - 2
        ids = np.full(config.max_length, config.pad, np.int64)
        kept = encoding.ids[:room]
        ids[0] = config.bos
        ids[1 : 1 + len(kept)] = kept
        ids[1 + len(kept)] = config.eos
        cut = prompt[encoding.offsets[room][0] :] if len(encoding.ids) > room else ""
        return Tokens(ids, cut)
