"""Read tensors from PyTorch's zip files without PyTorch, and without running code from them."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.printable import shown
from sd2rt.engines.weights.safetensors import widen_bfloat16

_STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}
_MAX_BYTES = 64 << 20
_MAX_INSTRUCTIONS = 10_000
_MAX_INTEGER = 1 << 63
_MAX_DIMENSIONS = 8


class ForbiddenError(Exception):
    """A pickle contains something other than tensors and containers; the message names it."""


class PickledTensor:
    """A tensor rebuilt from a pickle."""

    __slots__ = ("array",)

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array


class _Storage:
    __slots__ = ("data", "kind")

    def __init__(self, kind: str, data: bytes) -> None:
        self.kind = kind
        self.data = data


class _StorageKind:
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def read_pickled(data: bytes) -> Any:
    """Read a file of ``torch.save``: containers, strings, numbers, and :class:`PickledTensor` for tensors.

    Like ``torch.load(weights_only=True)``, it resolves only the functions that rebuild tensors and ordered
    dictionaries.

    Raises:
        ForbiddenError: the pickle refers to anything else.
        ValueError: it is not such a file, or was written before PyTorch 1.6 and is not a zip archive.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, NotImplementedError):
        raise ValueError("it is not a zip archive, which torch.save writes since PyTorch 1.6") from None
    with archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("it holds no data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
            raise ValueError("it is compressed, which torch.save never does")
        try:
            if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
                raise ValueError("its numbers are big-endian")
            code = archive.read(pickles[0])
            _check(code)
            return _Reader(code, lambda key: archive.read(f"{root}data/{key}")).load()
        except (ForbiddenError, ValueError):
            raise
        except Exception as error:
            # Arbitrary bytes can raise any exception; whichever it is, torch.save did not write the file.
            raise ValueError(f"its pickle is damaged ({type(error).__name__})") from None


def _check(code: bytes) -> None:
    """Refuse pickles that could exhaust the unpickler: deeply nested containers, or memos that need much memory.

    A file of embeddings has some hundred instructions.
    """
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(code), 1):
            if opcode.name == "BUILD":
                raise ForbiddenError("the opcode BUILD")
            memo = argument if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") else None
            if count > _MAX_INSTRUCTIONS or (isinstance(memo, int) and memo > _MAX_INSTRUCTIONS):
                raise ForbiddenError(f"more than {_MAX_INSTRUCTIONS} instructions")
            # Products of long integers take quadratic time.
            if isinstance(argument, int) and abs(argument) > _MAX_INTEGER:
                raise ValueError(f"an integer of {argument.bit_length()} bits")
    except ValueError as error:
        raise ValueError(f"its pickle is damaged: {error}") from None


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes, read: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._read = read
        self._storages: dict[str, bytes] = {}
        self._storage_bytes = self._tensor_bytes = 0

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _StorageKind(name)
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild_tensor
        function = _ALLOWED.get((module, name))
        if function is None:
            raise ForbiddenError(f"{module}.{name}")
        return function

    def persistent_load(self, pid: Any) -> _Storage:
        # A persistent id is ("storage", storage class, key, device, number of elements).
        tag, kind, key, _, count = pid[:5]
        if tag != "storage" or not isinstance(kind, _StorageKind) or not isinstance(key, str):
            raise ForbiddenError(f"a persistent {tag!r}")
        if key not in self._storages:
            # Entries of an archive may overlap: a small file can hold many large ones.
            self._storages[key] = self._read(key)
            self._storage_bytes += len(self._storages[key])
            if self._storage_bytes > _MAX_BYTES:
                raise ValueError(f"its storages have more than {_MAX_BYTES} bytes")
        held = len(self._storages[key])
        if type(count) is not int or not 0 <= count * np.dtype(_STORAGES[kind.name]).itemsize <= held:
            raise ValueError(f"its storage {shown(key)} has {held} bytes, too few for its elements")
        return _Storage(kind.name, self._storages[key])

    def _rebuild_tensor(self, *arguments: Any) -> PickledTensor:
        tensor = _rebuild_tensor(*arguments)
        # A memo repeats a storage, or the arguments of this call, in two bytes.
        self._tensor_bytes += tensor.array.nbytes
        if self._tensor_bytes > _MAX_BYTES:
            raise ValueError(f"its tensors have more than {_MAX_BYTES} bytes")
        return tensor


def _rebuild_tensor(storage: object, offset: int, size: Any, stride: Any, *_: object) -> PickledTensor:
    """Replacement of ``torch._utils._rebuild_tensor_v2``; its other arguments concern gradients."""
    if not isinstance(storage, _Storage):
        raise ValueError("its tensor has no storage")
    shape, steps = tuple(size), tuple(stride)
    if len(shape) > _MAX_DIMENSIONS or any(
        type(number) is not int or number < 0 for number in (offset, *shape, *steps)
    ):
        raise ValueError("its tensor has an invalid shape")
    flat = np.frombuffer(storage.data, _STORAGES[storage.kind])
    count = math.prod(shape)
    # A tensor with more elements than its storage would repeat some of them.
    if count > len(flat) or count * flat.itemsize > _MAX_BYTES or len(steps) != len(shape):
        raise ValueError(f"its tensor has an invalid shape: {list(shape)}")
    last = offset + sum((side - 1) * step for side, step in zip(shape, steps, strict=True)) if count else -1
    if last >= len(flat):
        raise ValueError(f"its tensor of shape {list(shape)} is larger than its storage")
    bytewise = tuple(step * flat.itemsize for step in steps)
    start = flat[offset:] if count else flat[:0]
    array = np.lib.stride_tricks.as_strided(start, shape, bytewise).copy()
    return PickledTensor(widen_bfloat16(array) if storage.kind == "BFloat16Storage" else array)


def _rebuild_parameter(tensor: object, *_: object) -> object:
    return tensor


def _ordered_dict() -> dict[Any, Any]:
    """Replacement of ``OrderedDict``, as a plain dict keeps the order too; items are set after the call."""
    return {}


def _size(shape: tuple[Any, ...]) -> tuple[Any, ...]:
    if type(shape) is not tuple:
        raise ValueError("its tensor has an invalid shape")
    return shape


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): _size,
}
