"""Textual inversion: names that stand for vectors of their own, beside the token table's rows."""

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
from sd2rt.engines.weights.safetensors import read_safetensors
from sd2rt.runtime.prompts.safe_pickle import ForbiddenError, PickledTensor, read_pickled

_LARGEST_BYTES = 64 << 20
_PICKLES = (".pt", ".bin", ".pth", ".ckpt")
_UNNAMED = ("emb_params", "*")
"""Keys under which AUTOMATIC1111 keeps vectors: they name nothing."""
_OTHER_MODELS = {768: "Stable Diffusion 1", 1280: "Stable Diffusion XL"}


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A name, and the vectors that it stands for in a prompt."""

    token: str
    vectors: NDArray[np.float32]  # [n, D]
    sha256: str
    """Of the file; of the vectors' bytes in float32 where there is none."""


def load_embedding(
    source: str | os.PathLike[str] | Mapping[str, Any], token: str | None, *, allow_pickle: bool
) -> Embedding:
    """An embedding from a file or a state dict, in diffusers' layout or AUTOMATIC1111's.

    Args:
        source: ``.safetensors``; ``.pt`` or ``.bin`` with ``allow_pickle``; or what is in one.
        token: the name in prompts; None for the one that the file gives, or else the file's own.

    Raises:
        RequestError: it cannot be read, is a pickle and that is not allowed, holds something else than one
            embedding, or has no name.
    """
    if isinstance(source, Mapping):
        name, vectors = _embedding("the state dict", source)
        digest, fallback = None, None
    else:
        path = Path(source)
        data = _read(path)
        name, vectors = _embedding(str(path), _tensors(path, data, allow_pickle))
        digest, fallback = hashlib.sha256(data).hexdigest(), path.stem
    own = token if token is not None else name if name is not None else fallback
    if own is None:
        raise RequestError("the state dict does not name its embedding: give the token that stands for it")
    if digest is None:
        digest = hashlib.sha256(vectors.tobytes()).hexdigest()
    return Embedding(own, vectors, digest)


def check_embedding(embedding: Embedding, manifest: Manifest) -> None:
    """See that an embedding fits a bundle's text encoder.

    Raises:
        RequestError: naming the model that it was made for, where its width tells.
    """
    width, room = manifest.embeddings.width, manifest.tokenizer.max_length - 2
    count, own = embedding.vectors.shape
    if own != width:
        other = _OTHER_MODELS.get(own, "another model")
        raise RequestError(
            f"embedding {embedding.token!r} is {own} numbers wide, this bundle's tokens are {width}: it was made "
            f"for {other}, find one for Stable Diffusion 2"
        )
    if not 1 <= count <= room:
        raise RequestError(
            f"embedding {embedding.token!r} has {count} vectors, expected 1 to {room}: it is no textual inversion"
        )
    if not np.isfinite(embedding.vectors).all():
        raise RequestError(
            f"embedding {embedding.token!r} holds values that are not finite: get the file again"
        )


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise RequestError(
                f"{path} has {path.stat().st_size} bytes, an embedding has {_LARGEST_BYTES} at most: "
                "it is something else"
            )
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None


def _tensors(path: Path, data: bytes, allow_pickle: bool) -> Any:
    try:
        if path.suffix.lower() == ".safetensors":
            return read_safetensors(data)
        if path.suffix.lower() not in _PICKLES:
            raise RequestError(f"{path} is no embedding by its name: give a .safetensors, .pt or .bin file")
        if not allow_pickle:
            raise RequestError(
                f"{path} is a pickle, a format that can carry code: use a .safetensors of the same embedding, or "
                "allow pickles (--allow-pickle) to read no more than tensors from it"
            )
        return read_pickled(data)
    except ForbiddenError as error:
        raise RequestError(
            f"{path} holds more than tensors ({error}), and a pickle with that can run code: it was not loaded"
        ) from None
    except ValueError as error:
        raise RequestError(f"{path} cannot be read ({error}): get the file again") from None


def _embedding(source: str, state: Any) -> tuple[str | None, NDArray[np.float32]]:
    """The name that a state dict gives, if any, and its vectors, [n, D]."""
    if not isinstance(state, Mapping):
        raise RequestError(f"{source} holds a {type(state).__name__}, expected tensors under names")
    if "clip_g" in state or "clip_l" in state:
        raise RequestError(
            f"{source} holds clip_l and clip_g, an embedding for Stable Diffusion XL: find one for Stable Diffusion 2"
        )
    name: Any = None
    held: Any = state
    if "string_to_param" in state:
        name, held = state.get("name"), state["string_to_param"]
    tensors = (
        {key: value for key, value in held.items() if _is_tensor(value)} if isinstance(held, Mapping) else {}
    )
    if len(tensors) != 1:
        raise RequestError(
            f"{source} holds {len(tensors)} tensors where a textual inversion has one: it is something else"
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
    # PyTorch's own tensors, by their methods: NumPy takes none that have gradients or are bfloat16.
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().float()
    return np.asarray(tensor)
