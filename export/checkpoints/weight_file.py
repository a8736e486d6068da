"""Read files of named tensors lazily, check them for damage, and never execute code from them."""

from __future__ import annotations

import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from sd2rt.engines.bundle.files import sha256 as file_sha256
from sd2rt.engines.errors import CheckpointError
from sd2rt.engines.printable import shown
from sd2rt.engines.regular_file import open_regular
from sd2rt.export.checkpoints.damage.content import HEADER_BYTES, described
from sd2rt.export.checkpoints.damage.extent import extent
from sd2rt.export.checkpoints.pickles.claims import Claims, check_claims
from sd2rt.export.checkpoints.pickles.unpickler import ClaimedTensor, CodeError, Inert

_MAX_FILE_BYTES = 64 << 30
"""Ten times the largest published checkpoint: a sparse file of terabytes takes no room on disk."""
_MAX_NESTING = 8
"""Dictionaries inside each other as state_dict; a dictionary may also contain itself."""
_MAX_DIMENSIONS = 8
_CUT_SHORT = re.compile(
    r"truncated|Ran out of input|of which the file holds|unexpected EOF|end of file", re.IGNORECASE
)
"""Errors of files that end too early."""

_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
}

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True, slots=True)
class WeightFile:
    """Tensors of one file: shapes are read at once, contents on demand."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    _read: Callable[[Iterable[str]], dict[str, torch.Tensor]] = field(repr=False)

    def tensors(self, keys: Iterable[str]) -> dict[str, torch.Tensor]:
        """The tensors of ``keys``, memory-mapped if the format allows."""
        return self._read(keys)


def open_safetensors(path: Path) -> WeightFile:
    """Open a safetensors file.

    Raises:
        CheckpointError: it is missing, truncated or of another format.
    """
    check_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise _damaged_safetensors(path, error) from None
    _check_dimensions(path, shapes)

    def read(keys: Iterable[str]) -> dict[str, torch.Tensor]:
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in keys}
        except (SafetensorError, OSError, ValueError, MemoryError) as error:
            raise _damaged_safetensors(path, error) from None

    return WeightFile(path, shapes, metadata, read)


def open_pickle(path: Path, *, allowed: bool) -> WeightFile:
    """Open a pickled PyTorch checkpoint without executing code from it.

    Raises:
        CheckpointError: pickles are not allowed, or the file is missing, truncated, contains code or has no
            tensors.
    """
    check_readable(path)
    if not allowed:
        raise CheckpointError(
            f"{path} is a pickle, a format that can contain code: use the .safetensors of the same "
            "checkpoint, convert it to one, or pass --allow-pickle to read its tensors alone, without "
            "running code"
        )
    state = _unpickle(path)
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} has no tensors, so it is not a checkpoint: use one")
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    _check_dimensions(path, shapes)
    return WeightFile(path, shapes, {}, lambda keys: {key: tensors[key] for key in keys})


def _unpickle(path: Path) -> Mapping[str, Any]:
    # Only zip archives, PyTorch's format since 1.6, can be mapped; older files are read into memory.
    mapped = zipfile.is_zipfile(path)
    try:
        claims = check_claims(path)
        if claims.foreign:
            state: Any = _claimed_state(path, claims)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except CodeError as error:
        raise _more_than_weights(path, str(error)) from None
    except Exception as error:
        # The unpickler gets arbitrary bytes: any exception means that they are not plain weights.
        text = str(error) or type(error).__name__
        refused = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"[Uu]nsupported (operand \d+)", text)
        if refused is not None:
            raise _more_than_weights(path, refused[1]) from None
        raise _unreadable_pickle(path, shown(text, 80)) from None
    state = _state_dict(state)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        kind = "n object of another class" if isinstance(state, Inert) else f" {type(state).__name__}"
        raise CheckpointError(f"{path} holds a{kind}, expected named tensors: it is no checkpoint, use one")
    return state


def _state_dict(state: Any) -> Any:
    for _ in range(_MAX_NESTING):
        if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
    return state


def _claimed_state(path: Path, claims: Claims) -> Any:
    """The named tensors of a file with objects of other libraries, which PyTorch's unpickler refuses.

    Only tensors of the state dict are made; their storages are mapped from the file.
    """
    state = _state_dict(claims.content)
    if not isinstance(state, dict):
        return state
    mapped = np.memmap(path, np.uint8, "c")
    return {
        name: _claimed_tensor(mapped, claims, value) if isinstance(value, ClaimedTensor) else None
        for name, value in state.items()
    }


def _claimed_tensor(mapped: NDArray[np.uint8], claims: Claims, claim: ClaimedTensor) -> torch.Tensor:
    dtype = _DTYPES[claim.kind.removeprefix("torch.").removesuffix("Storage")]
    position, length = claims.storages[claim.storage]
    count = length // dtype.itemsize
    sides = zip(claim.shape, claim.strides, strict=True)
    last = claim.offset + sum((side - 1) * stride for side, stride in sides)
    if math.prod(claim.shape) == 0:
        return torch.zeros(claim.shape, dtype=dtype)
    if last >= count:
        raise ValueError(f"a tensor of shape {list(claim.shape)} that is larger than its storage")
    data = mapped[position : position + count * dtype.itemsize]
    if position % dtype.itemsize:
        # Older files do not align storages.
        data = data.copy()
    return torch.frombuffer(data, dtype=dtype).as_strided(claim.shape, claim.strides, claim.offset)


def _more_than_weights(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path} contains more than weights ({found}), which could execute code, so it was not loaded: use the "
        ".safetensors of the same checkpoint"
    )


def _check_dimensions(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse shapes of thousands of dimensions, which would slow down whatever compares or prints them."""
    for key, shape in shapes.items():
        if len(shape) > _MAX_DIMENSIONS:
            raise CheckpointError(
                f"{path}: {shown(key)} has {len(shape)} dimensions, no weight has more than {_MAX_DIMENSIONS}: get "
                "the file again"
            )


def check_readable(path: Path) -> None:
    """Raise CheckpointError if ``path`` is missing, unreadable, not a regular file, empty or a Git LFS pointer."""
    try:
        with open_regular(path, _MAX_FILE_BYTES) as stream:
            start = stream.read(64)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: copy the checkpoint again") from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): check the path and its permissions"
        ) from None
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the weights: run 'git lfs pull' in its repository"
        )
    if not start:
        raise CheckpointError(f"{path} is empty: get the file again")


def _damaged_safetensors(path: Path, error: Exception) -> CheckpointError:
    # The library wraps whatever PyTorch raises while it reads, even a KeyboardInterrupt.
    if "KeyboardInterrupt" in str(error) or isinstance(error.__context__, KeyboardInterrupt):
        raise KeyboardInterrupt from None
    reason = shown(str(error).removeprefix("Error while deserializing header: "), 200)
    problem = _other_content(path, "a safetensors file")
    if problem is not None:
        return problem
    sizes = extent(path)
    if sizes is None:
        return CheckpointError(
            f"{path} is not a safetensors file, or damaged at its start ({reason}): use a checkpoint in this format"
        )
    size, described_size = sizes
    if size < described_size:
        return CheckpointError(
            f"{path} is truncated: it has {size} bytes of {described_size} that its header describes: get the file "
            "again"
        )
    if size > described_size:
        return CheckpointError(
            f"{path} has {size - described_size} bytes more than its header describes: something was appended to it, "
            "or its header is damaged; use an intact one"
        )
    return CheckpointError(
        f"{path} is whole, but the safetensors library cannot read it ({reason}): use it in float32 or float16, "
        "written by a current version"
    )


def _other_content(path: Path, expected: str) -> CheckpointError | None:
    """Error for a file that is something else than weights, by its first bytes."""
    with open_regular(path) as stream:
        found = described(stream.read(HEADER_BYTES))
    if found is None:
        return None
    name, remedy = found
    return CheckpointError(f"{path} is {name}, not {expected}: {remedy}")


def _unreadable_pickle(path: Path, reason: str) -> CheckpointError:
    """Error for a file that the weights-only loader refuses for another reason than code."""
    problem = _other_content(path, "a PyTorch checkpoint")
    if problem is not None:
        return problem
    with open_regular(path) as stream:
        start = stream.read(4)
    if start.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            return CheckpointError(f"{path} is truncated: its archive has no end: get the file again")
        if "data.pkl" in reason:
            return CheckpointError(f"{path} is a ZIP archive without weights: extract the checkpoint from it")
    elif not start.startswith(b"\x80"):
        return CheckpointError(
            f"{path} is not a PyTorch checkpoint: it begins with neither an archive nor a pickle: use a checkpoint "
            "in this format"
        )
    if _CUT_SHORT.search(reason):
        return CheckpointError(f"{path} is truncated ({reason}): get the file again")
    return CheckpointError(
        f"{path} is damaged, or a pickle that PyTorch's weights-only loader cannot read ({reason}): use the "
        ".safetensors of the same checkpoint"
    )


def sha256(path: Path, progress: Callable[[str], None] | None = None) -> str:
    """The file's SHA-256 in hexadecimal. ``progress`` is called first, as a large file takes seconds."""
    if progress is not None:
        progress(f"hashing {path.name} ({path.stat().st_size / 1e9:.1f} GB)")
    return file_sha256(path)
