"""Follow a pickle's instructions without importing or calling anything, and add up what it claims."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from sd2rt.export.checkpoints.pickles.names import ATTRIBUTE, CONTAINERS, DEFAULTS, HARMLESS, may_stand_in

# A checkpoint with moving averages and an optimiser's state has some 100 000 instructions and 3 MB of pickle.
_MAX_INSTRUCTIONS = 1_000_000
_MAX_PICKLE_BYTES = 64 << 20
_MAX_DIMENSIONS = 8
_MAX_SIDE = 1 << 40
_TENSORS_TO_FILE = 8
"""Limit of the bytes of all tensors, in those of the file: tensors may share a storage."""
_SLACK_BYTES = 1 << 20

_ITEM_BYTES = {
    "Double": 8,
    "Float": 4,
    "Half": 2,
    "BFloat16": 2,
    "Long": 8,
    "Int": 4,
    "Short": 2,
    "Char": 1,
    "Byte": 1,
    "Bool": 1,
    "ComplexDouble": 16,
    "ComplexFloat": 8,
}


class CodeError(Exception):
    """A pickle calls something that can run code; the message names it."""


class _Named:
    """A class or function that a pickle refers to; it is never imported."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Placeholder:
    """Result of a call whose value does not matter."""


class Inert:
    """Stand-in for an object of a class that is not known: it has neither behaviour nor contents."""


class Storage:
    """Storage of a tensor's numbers."""

    def __init__(self, key: str, kind: str, item_bytes: int, count: int) -> None:
        self.key, self.kind, self.item_bytes, self.count = key, kind, item_bytes, count


@dataclass(frozen=True, slots=True)
class ClaimedTensor:
    """Tensor of a file, as its pickle describes it."""

    storage: str
    """Key of its storage."""
    kind: str
    """Type of the storage's numbers, as in ``FloatStorage``."""
    offset: int
    """Position of the first number in the storage."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Limited:
    """A file of which a pickle may read a limited number of bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, _MAX_PICKLE_BYTES

    def read(self, count: int) -> bytes:
        self._take(count)
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline(self._left)
        self._take(len(line))
        return line

    def _take(self, count: int) -> None:
        self._left -= count
        if self._left <= 0:
            raise ValueError(f"a pickle of more than {_MAX_PICKLE_BYTES} bytes")


# The unpickler in Python rather than in C: its instructions can be counted and replaced one by one. In C, a large
# memo index allocates memory, and the hash of deeply nested tuples overflows the stack.
_Unpickler: Any = pickle._Unpickler


class Unpickler(_Unpickler):  # type: ignore[misc]
    """Follow a pickle's instructions without calling anything, and add up what it claims.

    Args:
        size: bytes of the file.
        storages: sizes of the archive's storages by key; None for an older file.
    """

    def __init__(self, file: BinaryIO, size: int, storages: Mapping[str, int] | None = None) -> None:
        super().__init__(_Limited(file), encoding="utf-8")
        self._size, self._storages = size, storages
        self.known: dict[str, Storage] = {}
        """Storages by key."""
        self.foreign = False
        self._instructions = self._storage_bytes = self._tensor_bytes = 0

    def count_instructions(self, count: int = 1) -> None:
        self._instructions += count
        if self._instructions > _MAX_INSTRUCTIONS:
            raise ValueError(f"more than {_MAX_INSTRUCTIONS} instructions")

    def find_class(self, module: str, name: str) -> _Named:
        return _Named(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        # Older files name the source of modules' classes: ("module", class, file, source).
        if isinstance(pid, tuple) and pid and pid[0] == "module" and isinstance(pid[1], _Named):
            return pid[1]
        # ("storage", storage class, key, device, number of elements), and in older files a view or None.
        if not isinstance(pid, tuple) or len(pid) < 5:
            raise ValueError("a persistent object that is not a storage")
        tag, kind, key, _, count = pid[:5]
        if tag != "storage" or not isinstance(kind, _Named) or not isinstance(key, str):
            raise ValueError("a persistent object that is not a storage")
        item_bytes = _ITEM_BYTES.get(kind.name.removeprefix("torch.").removesuffix("Storage"), 1)
        if not _is_count(count):
            raise ValueError(f"a storage of {count!r:.40} elements")
        held = self._size if self._storages is None else self._storages[key]
        if count * item_bytes > held:
            raise ValueError(f"a storage of {count * item_bytes} bytes, of which the file holds {held}")
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("a storage that is a view of another, as before PyTorch 0.4")
        if key not in self.known:
            self._storage_bytes += count * item_bytes
            if self._storage_bytes > self._size:
                raise ValueError("storages larger than the file")
            self.known[key] = Storage(key, kind.name, item_bytes, count)
        return Storage(key, kind.name, item_bytes, count)

    def call(self, function: object, arguments: Any) -> object:
        """Result of a call in a pickle: a container, or a placeholder."""
        if isinstance(function, Inert):
            return function
        if not isinstance(function, _Named) or not isinstance(arguments, tuple):
            raise CodeError(f"a call of {type(function).__name__}")
        name = function.name
        if name in DEFAULTS:
            # Its argument makes missing values, and is not called.
            self.foreign = True
            return {}
        if name in CONTAINERS and all(isinstance(items, dict | list | tuple | set) for items in arguments):
            # A memo repeats the items in two bytes, but PyTorch copies them.
            self.count_instructions(sum(len(items) for items in arguments))
            return CONTAINERS[name]()
        if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            return self._tensor(*arguments[:4])
        # A parameter is a tensor that was rebuilt and counted before.
        parameter = (
            name.startswith("torch._utils._rebuild_parameter") or name == "torch.nn.parameter.Parameter"
        )
        if parameter and arguments and isinstance(arguments[0], ClaimedTensor):
            return arguments[0]
        if name in HARMLESS and all(_is_small(argument) for argument in arguments):
            return arguments[0] if name == "torch.Size" and arguments else _Placeholder()
        if name in ATTRIBUTE and arguments and _is_inert(arguments[0]):
            return Inert()
        if name in CONTAINERS or not may_stand_in(name):
            raise CodeError(name[:80])
        self.foreign = True
        return Inert()

    def _tensor(self, storage: object, offset: Any, shape: Any, strides: Any) -> ClaimedTensor:
        if not isinstance(storage, Storage):
            raise ValueError("a tensor without storage")
        if len(shape) > _MAX_DIMENSIONS or len(strides) != len(shape):
            raise ValueError(f"a tensor of {len(shape)} dimensions")
        if not all(_is_count(number) for number in (offset, *shape, *strides)):
            raise ValueError("a tensor of an invalid shape")
        count = 1
        for side in shape:
            count *= side
        self._tensor_bytes += count * storage.item_bytes
        if self._tensor_bytes > _TENSORS_TO_FILE * self._size + _SLACK_BYTES:
            raise ValueError(f"tensors of more than {_TENSORS_TO_FILE} times the bytes of the file")
        return ClaimedTensor(storage.key, storage.kind, offset, tuple(shape), tuple(strides))


def _is_inert(value: object) -> bool:
    return isinstance(value, Inert) or (isinstance(value, _Named) and may_stand_in(value.name))


def _is_count(number: object) -> bool:
    return type(number) is int and 0 <= number < _MAX_SIDE


def _is_small(argument: object) -> bool:
    if isinstance(argument, tuple):
        return len(argument) <= _MAX_DIMENSIONS and all(type(item) in (int, float) for item in argument)
    return isinstance(argument, int | float | str | _Placeholder | _Named)


def _counted(handler: Callable[[Any], None]) -> Callable[[Any], None]:
    def counted(self: Unpickler) -> None:
        self.count_instructions()
        handler(self)

    return counted


def _reduce(self: Any) -> None:
    arguments = self.stack.pop()
    self.stack[-1] = self.call(self.stack[-1], arguments)


def _instantiate(self: Any) -> None:
    items = self.pop_mark()
    self.append(self.call(items[0] if items else None, tuple(items[1:])))


def _build(self: Any) -> None:
    # OrderedDict and parameters have state, which PyTorch restores by itself.
    self.stack.pop()
    if not isinstance(self.stack[-1], dict | ClaimedTensor | Inert):
        raise CodeError("the opcode BUILD")


def _set_items(self: Any, items: list[Any]) -> None:
    if isinstance(self.stack[-1], Inert):
        return
    if not isinstance(self.stack[-1], dict):
        raise CodeError(f"items of a {type(self.stack[-1]).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(key, _Named | Inert):
            # Training programs store callbacks by their classes, which are no names of weights.
            self.foreign = True
            continue
        # The hash of nested tuples is computed recursively.
        flat = all(isinstance(part, str | int) for part in key) if isinstance(key, tuple) else True
        if not flat or not isinstance(key, str | int | float | bytes | tuple | None):
            raise ValueError(f"a key that is a {type(key).__name__}")
        self.stack[-1][key] = value


def _set_item(self: Any) -> None:
    value, key = self.stack.pop(), self.stack.pop()
    _set_items(self, [key, value])


def _new_with_keywords(self: Any) -> None:
    # Their values are not needed: only inert objects take any.
    self.stack.pop()
    _reduce(self)


def _instantiate_named(self: Any) -> None:
    module, name = (self.readline()[:-1].decode() for _ in range(2))
    items = self.pop_mark()
    self.append(self.call(self.find_class(module, name), tuple(items)))


def _append(self: Any) -> None:
    value = self.stack.pop()
    _extend(self, [value])


def _extend(self: Any, items: list[Any]) -> None:
    target = self.stack[-1]
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Inert):
        raise CodeError(f"items of a {type(target).__name__}")


def _add_items(self: Any) -> None:
    # Sets hold no weights.
    self.pop_mark()
    if not isinstance(self.stack[-1], set | Inert):
        raise CodeError(f"items of a {type(self.stack[-1]).__name__}")


def _frozen_set(self: Any) -> None:
    self.pop_mark()
    self.append(_Placeholder())


def _refuse(name: str) -> Callable[[Any], None]:
    def refuse(self: Any) -> None:
        raise CodeError(f"the opcode {name}")

    return refuse


def _long(self: Any) -> None:
    length = self.read(1)[0]
    if length > 64:
        raise ValueError(f"an integer of {length} bytes")
    self.append(int.from_bytes(self.read(length), "little", signed=True))


_REPLACED: dict[bytes, Callable[[Any], None]] = {
    pickle.REDUCE: _reduce,
    pickle.NEWOBJ: _reduce,
    pickle.NEWOBJ_EX: _new_with_keywords,
    pickle.OBJ: _instantiate,
    pickle.INST: _instantiate_named,
    pickle.BUILD: _build,
    pickle.SETITEM: _set_item,
    pickle.SETITEMS: lambda self: _set_items(self, self.pop_mark()),
    pickle.LONG1: _long,
    pickle.LONG4: _refuse("LONG4"),
    pickle.EXT1: _refuse("EXT1"),
    pickle.EXT2: _refuse("EXT2"),
    pickle.EXT4: _refuse("EXT4"),
    pickle.ADDITEMS: _add_items,
    pickle.FROZENSET: _frozen_set,
    pickle.APPEND: _append,
    pickle.APPENDS: lambda self: _extend(self, self.pop_mark()),
}
Unpickler.dispatch = {
    code: _counted(_REPLACED.get(bytes([code]), handler)) for code, handler in _Unpickler.dispatch.items()
}
