"""Files of a bundle beside its networks: tokenizer, table of embeddings, texts of the licence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sd2rt.engines.bundle.files import describe
from sd2rt.engines.bundle.manifest import Embeddings, Tokenizer
from sd2rt.engines.bundle.schema import LICENSE_FOLDER, File, Precision
from sd2rt.engines.errors import CheckpointError
from sd2rt.export.checkpoints.checkpoint import Checkpoint

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}
NUMPY_DTYPES: dict[Precision, Literal["float32", "float16"]] = {"fp32": "float32", "fp16": "float16"}


def write_tokenizer(folder: Path, checkpoint: Checkpoint, text: str) -> Tokenizer:
    from tokenizers import Tokenizer as Backend

    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    backend = Backend.from_str(text)

    def token(text: str) -> int:
        index = backend.token_to_id(text)
        if index is None:
            raise CheckpointError(
                f"{checkpoint.name}: the tokenizer has no token {text!r}: not an SD2 tokenizer"
            )
        return index

    return Tokenizer(
        file=describe(folder, "tokenizer.json"),
        max_length=int(checkpoint.parts.config("text_encoder")["max_position_embeddings"]),
        bos=token("<|startoftext|>"),
        eos=token("<|endoftext|>"),
        pad=_pad_id(backend, checkpoint.name),
    )


def _pad_id(backend: Any, name: str) -> int:
    """The checkpoint's padding token: ``!`` in the published ones, but not in every fine-tune."""
    padding = backend.padding
    if padding is None:
        raise CheckpointError(f"{name}: the tokenizer defines no padding token: not an SD2 tokenizer")
    return int(padding["pad_id"])


def write_license_files(folder: Path, checkpoint: Checkpoint) -> tuple[File, ...]:
    if not checkpoint.license_files:
        return ()
    shutil.rmtree(folder / LICENSE_FOLDER, ignore_errors=True)
    (folder / LICENSE_FOLDER).mkdir()
    for name, content in checkpoint.license_files.items():
        (folder / LICENSE_FOLDER / name).write_bytes(content)
    return tuple(describe(folder, f"{LICENSE_FOLDER}/{name}") for name in checkpoint.license_files)


def write_embeddings(folder: Path, checkpoint: Checkpoint, precision: Precision) -> Embeddings:
    table = checkpoint.parts.tensors("text_encoder")
    weight = next(
        tensor for key, tensor in table.items() if key.endswith("embeddings.token_embedding.weight")
    )
    array = weight.to(DTYPES[precision]).numpy()
    np.save(folder / "embeddings.npy", array, allow_pickle=False)
    return Embeddings(
        file=describe(folder, "embeddings.npy"),
        tokens=array.shape[0],
        width=array.shape[1],
        dtype=NUMPY_DTYPES[precision],
        layers=int(checkpoint.parts.config("text_encoder")["num_hidden_layers"]),
    )
