"""Buffers whose host array is a NumPy array, and sessions of them; see :mod:`sd2rt.engines.interface`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from sd2rt.engines.bundle.schema import Part
from sd2rt.engines.bundle.shapes import shape_of
from sd2rt.engines.interface import Array, Buffer, copy_whole

Made = TypeVar("Made", bound="ArrayBuffer")
Handle = TypeVar("Handle")


class ArrayBuffer(ABC):
    """What buffers have in common that are written and read as a whole."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.phase = 0
        """Which of two arrays that change places at every launch is the buffer's now; 0 where there is one."""

    @property
    @abstractmethod
    def host(self) -> Array: ...

    @abstractmethod
    def push(self, rows: slice | None = None) -> None: ...

    @abstractmethod
    def pull(self) -> Array: ...

    @abstractmethod
    def take(self, source: Buffer, rows: Sequence[tuple[int, int]]) -> None: ...

    def write(self, array: Array) -> None:
        copy_whole(array, self.host)
        self.push()

    def read(self) -> Array:
        return self.pull().copy()


class HostBuffer(ArrayBuffer):
    """NumPy arrays that an engine on the CPU reads and writes in place: one, or two that change places."""

    def __init__(self, shape: tuple[int, ...], dtype: str, copies: int = 1) -> None:
        super().__init__(shape, dtype)
        self.arrays = [np.zeros(shape, dtype) for _ in range(copies)]

    @property
    def host(self) -> Array:
        return self.arrays[self.phase]

    def push(self, rows: slice | None = None) -> None:
        return

    def pull(self) -> Array:
        return self.arrays[self.phase]

    def take(self, source: Buffer, rows: Sequence[tuple[int, int]]) -> None:
        if rows:
            taken, to = map(list, zip(*rows, strict=True))
            # Indexed by lists, it is a copy: the source may be this array.
            self.host[to] = source.pull()[taken]


def session_buffers(
    part: Part,
    dims: Mapping[str, int],
    carry: Mapping[str, str],
    make: Callable[[tuple[int, ...], str, int], Made],
) -> dict[str, Made]:
    """The buffers of a session whose carried outputs and inputs change places: of two arrays for each such input.

    The output has none of its own.

    Args:
        make: a buffer of a shape, of a type and of so many arrays.

    Raises:
        ValueError: a symbol of the part's shapes has no size in ``dims``.
    """
    twins = set(carry.values())
    return {
        tensor.name: make(shape_of(tensor, dims), tensor.dtype, 2 if tensor.name in twins else 1)
        for tensor in (*part.inputs, *part.outputs)
        if tensor.name not in carry
    }


def bound_array(
    arrays: Mapping[str, Sequence[Handle]], carry: Mapping[str, str], name: str, phase: int
) -> Handle:
    """The array of an input or output at a launch of a phase, 0 or 1.

    A carried output is written to the array that its input is read from at the next launch.

    Args:
        arrays: of each of :func:`session_buffers`, as a backend binds them.
    """
    if name in carry:
        return arrays[carry[name]][phase ^ 1]
    choices = arrays[name]
    return choices[phase % len(choices)]


class WaitedSession:
    """What sessions have in common whose launch is done when it returns: carried buffers, and the watched output."""

    def __init__(
        self, buffers: Mapping[str, ArrayBuffer], carry: Mapping[str, str], watch: str | None
    ) -> None:
        self.buffers: Mapping[str, Buffer] = MappingProxyType(dict(buffers))
        self._carried = [buffers[target] for target in carry.values()]
        self._watch = None if watch is None else buffers[watch]
        self._seen: list[Array] = []
        self._phase = 0

    def _launched(self) -> None:
        """Let carried buffers change places, and keep what is watched."""
        if self._carried:
            self._phase ^= 1
            for buffer in self._carried:
                buffer.phase = self._phase
        if self._watch is not None:
            self._seen.append(self._watch.read())

    def watched(self, *, wait: bool) -> list[Array]:
        """What has not been handed out yet: a launch is done when it returns, so all there is."""
        seen, self._seen = self._seen, []
        return seen
