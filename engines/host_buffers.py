"""Buffers backed by NumPy arrays, and the base class of synchronous sessions; see :mod:`sd2rt.engines.interface`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from sd2rt.engines.bundle.schema import Part, shape_of
from sd2rt.engines.interface import Array, Buffer, copy_whole

BufferT = TypeVar("BufferT", bound="ArrayBuffer")
Bound = TypeVar("Bound")


class ArrayBuffer(ABC):
    """Base class of buffers that implements whole-array ``write`` and ``read``."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.phase = 0
        """Index of the current array of a double-buffered tensor; 0 if there is only one array."""

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
    """One NumPy array, or two that alternate, which an engine on the CPU reads and writes in place."""

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
            sources, targets = map(list, zip(*rows, strict=True))
            # Indexing with a list copies, so the source may be this array.
            self.host[targets] = source.pull()[sources]


def session_buffers(
    part: Part,
    dims: Mapping[str, int],
    carry: Mapping[str, str],
    make: Callable[[tuple[int, ...], str, int], BufferT],
) -> dict[str, BufferT]:
    """Create a session's buffers by tensor name, with two alternating arrays for each carried input.

    A carried output has no buffer of its own: it is written to the other array of its input.

    Args:
        make: creates a buffer from its shape, dtype and number of arrays.

    Raises:
        ValueError: ``dims`` has no size for a symbol of the part's shapes.
    """
    double_buffered = set(carry.values())
    return {
        tensor.name: make(shape_of(tensor, dims), tensor.dtype, 2 if tensor.name in double_buffered else 1)
        for tensor in (*part.inputs, *part.outputs)
        if tensor.name not in carry
    }


def bound_array(
    arrays: Mapping[str, Sequence[Bound]], carry: Mapping[str, str], name: str, phase: int
) -> Bound:
    """Select the array to bind to an input or output for a launch.

    A carried output is written to the array that its input reads at the next launch.

    Args:
        arrays: the arrays of each buffer of :func:`session_buffers`, in the form that the backend binds.
        phase: 0 or 1, alternating from launch to launch.
    """
    if name in carry:
        return arrays[carry[name]][phase ^ 1]
    choices = arrays[name]
    return choices[phase % len(choices)]


class WaitedSession:
    """Base class of sessions with a blocking launch; alternates carried buffers and records the watched output."""

    def __init__(
        self, buffers: Mapping[str, ArrayBuffer], carry: Mapping[str, str], watch: str | None
    ) -> None:
        self.buffers: Mapping[str, Buffer] = MappingProxyType(dict(buffers))
        self._carried = [buffers[target] for target in carry.values()]
        self._watch = None if watch is None else buffers[watch]
        self._outputs: list[Array] = []
        self._phase = 0

    def _launched(self) -> None:
        """Swap the arrays of carried buffers, and copy the watched output."""
        if self._carried:
            self._phase ^= 1
            for buffer in self._carried:
                buffer.phase = self._phase
        if self._watch is not None:
            self._outputs.append(self._watch.read())

    def watched(self, *, wait: bool) -> list[Array]:
        """Return the outputs that have not been returned yet; ``wait`` has no effect, since launches block."""
        outputs, self._outputs = self._outputs, []
        return outputs
