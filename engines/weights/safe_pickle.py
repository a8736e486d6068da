"""Read tensors from files of ``torch.save`` without PyTorch, and without running code from them."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

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
MAX_BYTES = 64 << 20
MAX_INSTRUCTIONS = 10_000
_MAX_INTEGER = 1 << 63
_OLDER_PICKLES = 4
"""After the magic number: version, system, object and keys of storages."""
_OLDER_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""A pickle of the magic number."""
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


class _Module:
    """A pickled module, as far as its parameters: files of older embeddings hold a ParameterDict."""

    __slots__ = ("parameters",)
    parameters: dict[str, PickledTensor]

    # Pickles make objects without calling __init__.
    def __new__(cls) -> Self:
        module = super().__new__(cls)
        module.parameters = {}
        return module

    def set_state(self, state: Any) -> None:
        parameters = state.get("_parameters") if isinstance(state, dict) else None
        # Since PyTorch 1.12 a ParameterDict has its items as attributes of any name.
        for items in (parameters, state):
            if isinstance(items, dict):
                self.parameters |= {
                    name: value for name, value in items.items() if isinstance(value, PickledTensor)
                }


def read_pickled(data: bytes, *, max_instructions: int = MAX_INSTRUCTIONS, max_bytes: int = MAX_BYTES) -> Any:
    """Read a file of ``torch.save``: containers, strings, numbers, and :class:`PickledTensor` for tensors.

    Like ``torch.load(weights_only=True)``, it resolves only the functions that rebuild tensors and ordered
    dictionaries. A ``ParameterDict`` becomes a dictionary.

    Raises:
        ForbiddenError: the pickle refers to anything else.
        ValueError: it is not such a file.
    """
    limits = _Limits(max_instructions, max_bytes)
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, NotImplementedError):
        return _plain(_read_older(data, limits))
    with archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("it holds no data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
            raise ValueError("it is compressed, which torch.save never does")
        with _damage():
            if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
                raise ValueError("its numbers are big-endian")
            code = archive.read(pickles[0])
            _check(code, limits.instructions)
            return _plain(_Reader(code, lambda key, _: archive.read(f"{root}data/{key}"), limits).load())


@dataclass(frozen=True, slots=True)
class _Limits:
    instructions: int
    size: int


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except (ForbiddenError, ValueError):
        raise
    except Exception as error:
        # Arbitrary bytes can raise any exception; whichever it is, torch.save did not write the file.
        raise ValueError(f"its pickle is damaged ({type(error).__name__})") from None


def _read_older(data: bytes, limits: _Limits) -> Any:
    """Read a file from before PyTorch 1.6: pickles, the last a list of storages, then their counts and bytes."""
    if not data.startswith(_OLDER_START):
        raise ValueError("it is not a zip archive, nor what torch.save wrote before PyTorch 1.6")
    with _damage():
        stream, codes = io.BytesIO(data), []
        stream.seek(len(_OLDER_START))
        for _ in range(_OLDER_PICKLES):
            start = stream.tell()
            _check(stream, limits.instructions)
            codes.append(data[start : stream.tell()])
        kinds: dict[str, str] = {}
        # The object is read twice: the sizes of storages are known only with their types.
        _Reader(codes[2], None, limits, kinds).load()
        keys = _Reader(codes[3], None, limits).load()
        system = _Reader(codes[1], None, limits).load()
        if system.get("little_endian") is not True:
            raise ValueError("its numbers are big-endian")
        storages, position = {}, stream.tell()
        for key in keys:
            (count,) = struct.unpack_from("<q", data, position)
            size = count * np.dtype(_STORAGES[kinds[key]]).itemsize
            position += 8
            if not 0 <= size <= len(data) - position:
                raise ValueError(f"its storage {shown(key)} is longer than the file")
            storages[key] = data[position : position + size]
            position += size
        return _Reader(codes[2], lambda key, _: storages[key], limits).load()


def _plain(value: Any, depth: int = 2) -> Any:
    """Replace modules by dictionaries of their parameters, in the containers in which files have them."""
    if isinstance(value, _Module):
        return value.parameters
    if isinstance(value, dict) and depth:
        for key, item in value.items():
            if isinstance(item, _Module | dict) and item is not value:
                value[key] = _plain(item, depth - 1)
    return value


def _check(code: bytes | io.BytesIO, limit: int) -> None:
    """Refuse pickles that could exhaust the unpickler: deeply nested containers, or memos that need much memory.

    A file of embeddings has some hundred instructions.
    """
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(code), 1):
            memo = argument if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") else None
            if count > limit or (isinstance(memo, int) and memo > limit):
                raise ForbiddenError(f"more than {limit} instructions")
            # Products of long integers take quadratic time.
            if isinstance(argument, int) and abs(argument) > _MAX_INTEGER:
                raise ValueError(f"an integer of {argument.bit_length()} bits")
    except ValueError as error:
        raise ValueError(f"its pickle is damaged: {error}") from None


# The unpickler in Python, whose instructions can be replaced: BUILD of the one in C sets attributes of anything.
_Unpickler: Any = pickle._Unpickler


class _Reader(_Unpickler):  # type: ignore[misc]
    """Restricted unpickler.

    Args:
        read: returns a storage's bytes by its key and kind; None to collect their kinds only.
        kinds: kinds of storages by key, which are added to it.
    """

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(_Unpickler.dispatch)

    def __init__(
        self,
        data: bytes,
        read: Callable[[str, str], bytes] | None,
        limits: _Limits,
        kinds: dict[str, str] | None = None,
    ) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._read, self._limits, self._kinds = read, limits, kinds
        self._storages: dict[str, bytes] = {}
        self._storage_bytes = self._tensor_bytes = 0

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _StorageKind(name)
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild_tensor
        if (module, name) == ("torch.nn.modules.container", "ParameterDict"):
            return _Module
        function = _ALLOWED.get((module, name))
        if function is None:
            raise ForbiddenError(f"{module}.{name}")
        return function

    def persistent_load(self, pid: Any) -> Any:
        # Older files name the source of modules' classes: ("module", class, file, source).
        if pid[0] == "module" and pid[1] is _Module:
            return _Module
        # A persistent id is ("storage", storage class, key, device, number of elements).
        tag, kind, key, _, count = pid[:5]
        if tag != "storage" or not isinstance(kind, _StorageKind) or not isinstance(key, str):
            raise ForbiddenError(f"a persistent {tag!r}")
        if self._kinds is not None:
            self._kinds[key] = kind.name
        if self._read is None:
            return _Storage(kind.name, b"")
        if pid[5:] not in ((), (None,)):
            raise ValueError("its storages are views of others, as before PyTorch 0.4")
        if key not in self._storages:
            # Entries of an archive may overlap: a small file can hold many large ones.
            self._storages[key] = self._read(key, kind.name)
            self._storage_bytes += len(self._storages[key])
            if self._storage_bytes > self._limits.size:
                raise ValueError(f"its storages have more than {self._limits.size} bytes")
        held = len(self._storages[key])
        if type(count) is not int or not 0 <= count * np.dtype(_STORAGES[kind.name]).itemsize <= held:
            raise ValueError(f"its storage {shown(key)} has {held} bytes, too few for its elements")
        return _Storage(kind.name, self._storages[key])

    def _rebuild_tensor(self, *arguments: Any) -> PickledTensor:
        if self._read is None:
            return PickledTensor(np.zeros(0))
        tensor = _rebuild_tensor(*arguments, limit=self._limits.size)
        # A memo repeats a storage, or the arguments of this call, in two bytes.
        self._tensor_bytes += tensor.array.nbytes
        if self._tensor_bytes > self._limits.size:
            raise ValueError(f"its tensors have more than {self._limits.size} bytes")
        return tensor

    def load_build(self) -> None:
        """Give a module its parameters; anything else may only have the versions that state dicts have."""
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is _Module:
            target.set_state(state)
        elif type(target) is not dict or not isinstance(state, dict) or set(state) != {"_metadata"}:
            raise ForbiddenError("the opcode BUILD")

    dispatch[pickle.BUILD[0]] = load_build


def _rebuild_tensor(
    storage: object, offset: int, size: Any, stride: Any, *_: object, limit: int
) -> PickledTensor:
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
    if count > len(flat) or count * flat.itemsize > limit or len(steps) != len(shape):
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


def _set(_: object = ()) -> tuple[Any, ...]:
    """Replacement of ``set``: modules have some, of no interest here."""
    return ()


def _size(shape: tuple[Any, ...]) -> tuple[Any, ...]:
    if type(shape) is not tuple:
        raise ValueError("its tensor has an invalid shape")
    return shape


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): _size,
    ("__builtin__", "set"): _set,
    ("builtins", "set"): _set,
}
