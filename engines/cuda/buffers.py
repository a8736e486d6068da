"""Buffers of a session's tensors on a GPU, with their host arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.cuda.device import CudaDevice
from sd2rt.engines.cuda.memory import Memory, Ring, aligned
from sd2rt.engines.interface import Array, Buffer, copy_whole

AHEAD = 4
"""Launches that the host may be ahead of the device: enough to hide delays of the host, few enough to stop soon."""
SMALL_BYTES = 4096
"""Inputs up to this size are packed into one block."""
_LARGE_BYTES = 2 << 20
"""Buffers above this size, which are not pushed at every step, have two staging slots instead of ``AHEAD``."""


class Block:
    """The small inputs of a session, packed into one block that is sent to the device in one copy.

    Args:
        sizes: bytes of each tensor, by name.
        memory: device memory of :meth:`size_of` bytes.
    """

    def __init__(self, device: CudaDevice, sizes: dict[str, int], memory: Memory, what: str) -> None:
        self._device, self._memory = device, memory
        self._host = np.zeros(memory.nbytes, np.uint8)
        self._ring = Ring(device, memory.nbytes, AHEAD, what)
        self._spans: dict[str, tuple[int, int]] = {}  # offset, bytes
        offset = 0
        for name, nbytes in sizes.items():
            self._spans[name] = offset, nbytes
            offset += aligned(nbytes)
        self.dirty = True

    @staticmethod
    def size_of(sizes: dict[str, int]) -> int:
        """Bytes of a block for tensors of these sizes."""
        return sum(aligned(nbytes) for nbytes in sizes.values())

    def host(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes on the host: a view that stays valid as long as the block."""
        offset, nbytes = self._spans[name]
        return self._host[offset : offset + nbytes]

    def address(self, name: str) -> int:
        """A tensor's address on the device."""
        return self._memory.address + self._spans[name][0]

    def send(self) -> None:
        """Enqueue a copy of the block to the device if any input has been pushed since the last one."""
        if self.dirty:
            slot = self._ring.next()
            slot.array[:] = self._host
            self._device.copy(self._memory.buffer, slot.buffer)
            slot.sent()
            self.dirty = False

    def free(self) -> None:
        """Free the staging ring; the session owns the device memory."""
        self._ring.free()


class _CudaBuffer:
    """Common base of both kinds of buffer; see :class:`sd2rt.engines.interface.Buffer`."""

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
        """Copy entries through the host, for sources that the device cannot copy from."""
        entries = source.read()
        for from_row, to_row in rows:
            self._host[to_row] = entries[from_row]
            self.push(slice(to_row, to_row + 1))


class SmallInput(_CudaBuffer):
    """A tensor within a block. The device never writes it, so the host array always has its contents."""

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
    """A tensor with its own device memory."""

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
                # Allocate all slots before the first step: page-locking memory may synchronise the device.
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
                f"entries of {source.dtype}{list(source.shape[1:])} do not match a buffer of "
                f"{self.dtype}{list(self.shape[1:])}"
            )
        if not isinstance(source, CudaBuffer) or source._device is not self._device:
            super().take(source, rows)
            return
        runs = list(_runs(rows, in_place=source is self))
        with self._device.errors(self._label):
            if source is self and (shifts := _shifts(runs)) is None:
                self._shuffle(runs)
                return
            for from_row, to_row, count in runs if source is not self else shifts or ():
                self._device.copy(self._entries(to_row, count), source._entries(from_row, count))

    def _entries(self, first: int, count: int) -> Any:
        return self._memory.piece(first * self._row_bytes, count * self._row_bytes)

    def _shuffle(self, runs: list[tuple[int, int, int]]) -> None:
        """Copy overlapping runs within this buffer through scratch memory: read all, then write all."""
        nbytes = sum(count for _, _, count in runs) * self._row_bytes
        scratch = self._device.allocate(nbytes, self._label)
        offset = 0
        pieces = []
        for from_row, to_row, count in runs:
            piece = scratch.piece(offset, count * self._row_bytes)
            offset += count * self._row_bytes
            self._device.copy(piece, self._entries(from_row, count))
            pieces.append((to_row, count, piece))
        for to_row, count, piece in pieces:
            self._device.copy(self._entries(to_row, count), piece)
        scratch.free()

    def free(self) -> None:
        """Free the staging ring; the session owns the device memory."""
        if self._ring is not None:
            self._ring.free()
            self._ring = None


def _shifts(runs: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]] | None:
    """Split runs within one buffer so that none overlaps its own target, if they may be copied one after another.

    Entries that move up because others before them have left are copied without scratch memory: the device would
    allocate it in the middle of a loop. Returns None if a run would overwrite what a later one reads.
    """
    pieces: list[tuple[int, int, int]] = []
    for from_row, to_row, count in runs:
        distance = from_row - to_row
        if distance < 0 and -distance < count:
            return None
        size = min(count, abs(distance))
        pieces += (
            (from_row + first, to_row + first, min(size, count - first)) for first in range(0, count, size)
        )
    written: set[int] = set()
    for from_row, to_row, count in pieces:
        if not written.isdisjoint(range(from_row, from_row + count)):
            return None
        written.update(range(to_row, to_row + count))
    return pieces


def _runs(rows: Sequence[tuple[int, int]], *, in_place: bool) -> Iterator[tuple[int, int, int]]:
    """Merge consecutive pairs into runs: first source row, first target row, number of rows."""
    start: tuple[int, int] | None = None
    count = 0
    for from_row, to_row in rows:
        if in_place and from_row == to_row:
            continue
        if start is not None and (from_row, to_row) == (start[0] + count, start[1] + count):
            count += 1
            continue
        if start is not None:
            yield *start, count
        start, count = (from_row, to_row), 1
    if start is not None:
        yield *start, count
