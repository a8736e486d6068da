"""A session's tensors on a GPU, and what of them the host holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.cuda.device import CudaDevice
from sd2rt.engines.cuda.memory import Memory, Ring, aligned
from sd2rt.engines.interface import Array, Buffer, copy_whole

AHEAD = 4
"""Launches that the host may be ahead of the device: more than its own delays take, few enough to stop soon."""
SMALL_BYTES = 4096
_LARGE_BYTES = 2 << 20
"""Of slots above that, which are not pushed at every step, there are two."""


class Block:
    """The small inputs of a session: one block on the host, one on the device, and one copy for all of them.

    Args:
        sizes: bytes of each tensor.
        memory: :meth:`size_of` them on the device.
    """

    def __init__(self, device: CudaDevice, sizes: dict[str, int], memory: Memory, what: str) -> None:
        self._device, self._memory = device, memory
        self._host = np.zeros(memory.nbytes, np.uint8)
        self._ring = Ring(device, memory.nbytes, AHEAD, what)
        self._places: dict[str, tuple[int, int]] = {}
        offset = 0
        for name, nbytes in sizes.items():
            self._places[name] = offset, nbytes
            offset += aligned(nbytes)
        self.dirty = True

    @staticmethod
    def size_of(sizes: dict[str, int]) -> int:
        """Bytes of a block for tensors of these sizes."""
        return sum(aligned(nbytes) for nbytes in sizes.values())

    def host(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes on the host, the same array as long as the block lives."""
        offset, nbytes = self._places[name]
        return self._host[offset : offset + nbytes]

    def address(self, name: str) -> int:
        """Where a tensor lies on the device."""
        return self._memory.address + self._places[name][0]

    def send(self) -> None:
        """Enqueue the copy of what the host holds by now, where any of it has been pushed."""
        if self.dirty:
            slot = self._ring.next()
            slot.array[:] = self._host
            self._device.copy(self._memory.buffer, slot.buffer)
            slot.sent()
            self.dirty = False

    def free(self) -> None:
        """Give the ring back; the memory is the session's."""
        self._ring.free()


class _CudaBuffer:
    """What the two kinds have in common; see :class:`sd2rt.engines.interface.Buffer`."""

    def __init__(self, host: Array, label: str) -> None:
        self._host, self._label = host, label

    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._host.dtype

    @property
    def host(self) -> Array:
        return self._host

    def push(self, rows: slice | None = None) -> None:
        raise NotImplementedError

    def write(self, array: Array) -> None:
        copy_whole(array, self._host)
        self.push()

    def take(self, source: Buffer, rows: Sequence[tuple[int, int]]) -> None:
        """By way of the host, for what the device has no copy for."""
        entries = source.read()
        for taken, to in rows:
            self._host[to] = entries[taken]
            self.push(slice(to, to + 1))


class SmallInput(_CudaBuffer):
    """A tensor within a block. Nothing but the host changes it, so the host knows what it holds."""

    def __init__(self, block: Block, name: str, shape: tuple[int, ...], dtype: str) -> None:
        super().__init__(block.host(name).view(dtype).reshape(shape), name)
        self._block = block

    def push(self, rows: slice | None = None) -> None:
        self._block.dirty = True

    def pull(self) -> Array:
        return self._host

    def read(self) -> Array:
        return self._host.copy()


class CudaBuffer(_CudaBuffer):
    """A tensor with memory of its own on the device."""

    def __init__(
        self, device: CudaDevice, memory: Memory, shape: tuple[int, ...], dtype: str, label: str
    ) -> None:
        super().__init__(np.zeros(shape, dtype), label)
        self._device, self._memory = device, memory
        self._row_bytes = self._host.nbytes // shape[0] if shape else self._host.nbytes
        self._ring: Ring | None = None

    def push(self, rows: slice | None = None) -> None:
        first, last, _ = (rows or slice(None)).indices(self.shape[0])
        nbytes = (last - first) * self._row_bytes
        if nbytes <= 0:
            return
        with self._device.errors(self._label):
            if self._ring is None:
                # All slots at once: page-locking memory may stop the device, and is done before the first step.
                slots = AHEAD if self._host.nbytes <= _LARGE_BYTES else 2
                self._ring = Ring(self._device, self._host.nbytes, slots, self._label)
            slot = self._ring.next()
            slot.array[:nbytes] = self._host[first:last].reshape(-1).view(np.uint8)
            self._device.copy(self._memory.piece(first * self._row_bytes, nbytes), slot.piece(nbytes))
            slot.sent()

    def pull(self) -> Array:
        with self._device.errors(self._label):
            self._device.fetch(self._memory, self._host)
        return self._host

    def read(self) -> Array:
        array = np.empty_like(self._host)
        with self._device.errors(self._label):
            self._device.fetch(self._memory, array)
        return array

    def take(self, source: Buffer, rows: Sequence[tuple[int, int]]) -> None:
        if source.shape[1:] != self.shape[1:] or source.dtype != self.dtype:
            raise ValueError(
                f"entries of {source.dtype}{list(source.shape[1:])} do not fit a buffer of "
                f"{self.dtype}{list(self.shape[1:])}"
            )
        if not isinstance(source, CudaBuffer) or source._device is not self._device:
            super().take(source, rows)
            return
        runs = list(_runs(rows, in_place=source is self))
        with self._device.errors(self._label):
            if source is self and {to for _, to, n in runs for to in range(to, to + n)} & {
                taken for taken, _, n in runs for taken in range(taken, taken + n)
            }:
                self._shuffle(runs)
                return
            for taken, to, count in runs:
                self._device.copy(self._entries(to, count), source._entries(taken, count))

    def _entries(self, first: int, count: int) -> Any:
        return self._memory.piece(first * self._row_bytes, count * self._row_bytes)

    def _shuffle(self, runs: list[tuple[int, int, int]]) -> None:
        """Runs that lie over each other: all are read before one is written."""
        nbytes = sum(count for _, _, count in runs) * self._row_bytes
        scratch = self._device.allocate(nbytes, self._label)
        offset = 0
        pieces = []
        for taken, to, count in runs:
            piece = scratch.piece(offset, count * self._row_bytes)
            offset += count * self._row_bytes
            self._device.copy(piece, self._entries(taken, count))
            pieces.append((to, count, piece))
        for to, count, piece in pieces:
            self._device.copy(self._entries(to, count), piece)
        scratch.free()

    def free(self) -> None:
        """Give the ring back; the memory is the session's."""
        if self._ring is not None:
            self._ring.free()
            self._ring = None


def _runs(rows: Sequence[tuple[int, int]], *, in_place: bool) -> Iterator[tuple[int, int, int]]:
    """Pairs that follow each other as one copy: where from, where to, how many."""
    start: tuple[int, int] | None = None
    count = 0
    for taken, to in rows:
        if in_place and taken == to:
            continue
        if start is not None and (taken, to) == (start[0] + count, start[1] + count):
            count += 1
            continue
        if start is not None:
            yield *start, count
        start, count = (taken, to), 1
    if start is not None:
        yield *start, count
