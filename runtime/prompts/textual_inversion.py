"""Textual inversion: learned embedding vectors that prompts use by name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.manifest import Manifest
from sd2rt.engines.errors import RequestError
from sd2rt.engines.lora.file import Lora, take_bundled
from sd2rt.engines.path_argument import checked_path
from sd2rt.engines.printable import is_text, repr_of, shown
from sd2rt.engines.regular_file import read_regular
from sd2rt.engines.weights.safe_pickle import ForbiddenError, PickledTensor, read_pickled
from sd2rt.engines.weights.safetensors import read_safetensors, read_whole
from sd2rt.runtime.prompts.embedding_image import read_embedding_image

_MAX_BYTES = 64 << 20
_PICKLES = (".pt", ".bin", ".pth", ".ckpt")
_MAX_TOKEN = 1000
_UNNAMED = ("emb_params", "*")
"""AUTOMATIC1111's generic keys for vectors; they are not names."""
_OTHER_MODELS = {768: "Stable Diffusion 1", 1280: "Stable Diffusion XL"}


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """Embedding vectors and their name in prompts."""

    token: str
    vectors: NDArray[np.float32]  # [n, D]
    sha256: str
    """Digest of the file, or of the vectors' float32 bytes if they come from a state dict."""
    file_name: str | None = None
    """Name of the file without its suffix; None if the caller named the embedding."""

    @property
    def a1111_name(self) -> str:
        """Name in prompts of the syntax ``a1111``: AUTOMATIC1111 ignores names that are stored in files."""
        return self.token if self.file_name is None else self.file_name


def load_embedding(
    source: str | os.PathLike[str] | Mapping[str, Any], token: str | None, *, allow_pickle: bool
) -> Embedding:
    """Load an embedding from a file or a state dict, in diffusers' or AUTOMATIC1111's layout.

    Args:
        source: a ``.safetensors`` file; a ``.png`` of AUTOMATIC1111's training; a ``.pt`` or ``.bin`` file, with
            ``allow_pickle``; or a state dict.
        token: its name in prompts; None for the name stored in the file, or the file's name if there is none. In
            the syntax ``a1111``, None is the file's name in either case.

    Raises:
        RequestError: it cannot be read, is a pickle without ``allow_pickle``, does not hold exactly one embedding,
            or has no name.
    """
    if isinstance(source, Mapping):
        name, vectors = _embedding("the state dict", source)
        digest, fallback = None, None
    else:
        path = checked_path(source, "the embedding")
        data = _read(path)
        name, state = _bundled(path, _tensors(path, data, allow_pickle), token)
        stored, vectors = _embedding(str(path), state)
        name = stored if name is None else name
        digest, fallback = hashlib.sha256(data).hexdigest(), path.stem
        if path.suffix.lower() == ".png" and name is not None:
            # The one kind of file whose stored name AUTOMATIC1111 uses.
            fallback = name
    named = token is not None or fallback is None or not is_text(fallback)
    token = token if token is not None else name if name is not None else fallback
    if token is None:
        raise RequestError("the state dict does not name its embedding: give its name as token")
    _check_token(token)
    if digest is None:
        digest = hashlib.sha256(vectors.tobytes()).hexdigest()
    return Embedding(token, vectors, digest, None if named else fallback)


def _bundled(path: Path, state: Any, token: str | None) -> tuple[str | None, Any]:
    """Choose one of the embeddings that a LoRA's file holds, by its name; return other files' tensors as they are."""
    bundled = take_bundled(state) if isinstance(state, dict) else {}
    if not bundled:
        return None, state
    if token not in bundled and len(bundled) > 1:
        names = ", ".join(map(shown, bundled))
        raise RequestError(f"{path} holds the embeddings {names}: give the name of one as its token")
    name = token if token in bundled else next(iter(bundled))
    return name, bundled[name]


def embeddings_of_lora(lora: Lora) -> list[Embedding]:
    """Return the textual inversions that a LoRA's file holds too; prompts of both syntaxes use them by their names.

    Raises:
        RequestError: one does not hold vectors of one width, or cannot be named.
    """
    embeddings = []
    for name, tensors in lora.embeddings.items():
        source = f"{lora.path}'s embedding {shown(repr(name))}"
        _check_token(name)
        _, vectors = _embedding(source, tensors)
        embeddings.append(Embedding(name, vectors, lora.sha256, name))
    return embeddings


def _check_token(token: object) -> None:
    """Check that prompts, which are valid UTF-8, can contain a token."""
    if not isinstance(token, str):
        raise RequestError(f"the token of the embedding is {shown(repr_of(token))}: use text")
    if not token.strip() or len(token) > _MAX_TOKEN or not is_text(token):
        raise RequestError(
            f"{shown(repr(token))} cannot be the token of an embedding: use valid UTF-8 text of at most "
            f"{_MAX_TOKEN} characters"
        )


def check_embedding(embedding: Embedding, manifest: Manifest) -> None:
    """Check that an embedding fits a bundle's text encoder.

    Raises:
        RequestError: it does not fit; the error names the model that it was made for, if the width reveals it.
    """
    expected_width, max_count = manifest.embeddings.width, manifest.tokenizer.max_length - 2
    count, width = embedding.vectors.shape
    if width != expected_width:
        other = _OTHER_MODELS.get(width, "another model")
        raise RequestError(
            f"embedding {embedding.token!r} has vectors of width {width}, this bundle's have {expected_width}: "
            f"it was made for {other}, find one for Stable Diffusion 2"
        )
    if not 1 <= count <= max_count:
        raise RequestError(
            f"embedding {embedding.token!r} has {count} vectors, expected 1 to {max_count}: "
            "it is not a textual inversion"
        )
    if not np.isfinite(embedding.vectors).all():
        raise RequestError(
            f"embedding {embedding.token!r} holds values that are not finite: get the file again"
        )


def _read(path: Path) -> bytes:
    try:
        if path.suffix.lower() == ".safetensors":
            return read_whole(path, _MAX_BYTES)
        return read_regular(path, _MAX_BYTES)
    except ValueError as error:
        raise RequestError(f"{path} cannot be read ({error}): get the file again") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None


def _tensors(path: Path, data: bytes, allow_pickle: bool) -> Any:
    try:
        if path.suffix.lower() == ".safetensors":
            return read_safetensors(data)
        if path.suffix.lower() == ".png":
            return read_embedding_image(data)
        if path.suffix.lower() not in _PICKLES:
            raise RequestError(f"{path} is not an embedding file: use a .safetensors, .pt, .bin or .png file")
        if not allow_pickle:
            raise RequestError(
                f"{path} is a pickle, a format that can carry code: use a .safetensors of the same embedding, or "
                "allow pickles (--allow-pickle), of which only tensors are read"
            )
        return read_pickled(data)
    except ForbiddenError as error:
        raise RequestError(
            f"{path} holds more than tensors ({error}) and might run code: it was not loaded"
        ) from None
    except ValueError as error:
        raise RequestError(f"{path} cannot be read ({error}): get the file again") from None


def _embedding(source: str, state: Any) -> tuple[str | None, NDArray[np.float32]]:
    """Extract the name in a state dict, if any, and its vectors, [n, D]."""
    if not isinstance(state, Mapping):
        raise RequestError(f"{source} holds a {type(state).__name__}, expected a dictionary of tensors")
    if "clip_g" in state or "clip_l" in state:
        raise RequestError(
            f"{source} holds clip_l and clip_g, an embedding for Stable Diffusion XL: find one for Stable Diffusion 2"
        )
    name: Any = None
    entries: Any = state
    if "string_to_param" in state:
        name, entries = state.get("name"), state["string_to_param"]
    tensors = (
        {key: value for key, value in entries.items() if _is_tensor(value)}
        if isinstance(entries, Mapping)
        else {}
    )
    if len(tensors) != 1:
        raise RequestError(
            f"{source} holds {len(tensors)} tensors, expected one: it is not a textual inversion"
        )
    ((key, tensor),) = tensors.items()
    if name is None and key not in _UNNAMED:
        name = key
    array = _array(tensor)
    if array.dtype.kind != "f" or array.ndim not in (1, 2):
        raise RequestError(
            f"{source} holds {array.dtype}{list(array.shape)}, expected the vectors of a token, [n, D]"
        )
    vectors = np.ascontiguousarray(array if array.ndim == 2 else array[None], np.float32)
    return (name if isinstance(name, str) else None), vectors


def _is_tensor(value: object) -> bool:
    return isinstance(value, PickledTensor) or hasattr(value, "__array__")


def _array(tensor: Any) -> NDArray[Any]:
    if isinstance(tensor, PickledTensor):
        return tensor.array
    # NumPy cannot convert PyTorch tensors that require gradients or are bfloat16.
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().float()
    return np.asarray(tensor)
