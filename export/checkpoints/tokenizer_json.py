"""Read a checkpoint's tokenizer in the Hugging Face tokenizers format."""

from __future__ import annotations

import os
from pathlib import Path

from transformers import CLIPTokenizer

from sd2rt.engines.demo.files import TOKENIZER
from sd2rt.engines.errors import CheckpointError
from sd2rt.engines.regular_file import check_regular
from sd2rt.export.checkpoints.pipeline_configs import Config

_MAX_FILE_BYTES = 16 << 20
"""The published tokenizer.json has 2 MB, vocabulary and merges a megabyte each."""


def packaged_tokenizer_json() -> str:
    """The tokenizer shared by all published SD2 checkpoints, set to truncate and pad to 77 ids."""
    return TOKENIZER.read_text(encoding="utf-8")


def read_tokenizer_json(folder: Path, text_encoder: Config) -> str:
    """The tokenizer of a diffusers folder, set to truncate and pad to the text encoder's length.

    Raises:
        CheckpointError: it cannot be read, or has more tokens than the text encoder's table.
    """
    _check_files(folder)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        # Several libraries read these files, each with exceptions of its own.
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{folder} cannot be read as a CLIP tokenizer ({reason}): copy it again"
        ) from None
    rows = int(text_encoder["vocab_size"])
    if len(tokenizer) > rows:
        raise CheckpointError(
            f"{folder} has {len(tokenizer)} tokens, but the text encoder's table has {rows}: they are of "
            "different checkpoints; copy the folder again"
        )
    length = int(text_encoder["max_position_embeddings"])
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(length)
    backend.enable_padding(length=length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    return str(backend.to_str())


def _check_files(folder: Path) -> None:
    """Check the files before libraries open them, which wait at pipes and read devices without end."""
    path = folder
    try:
        for path in sorted(folder.iterdir()):
            if not os.path.isdir(path):
                check_regular(path, _MAX_FILE_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): copy it again") from None
