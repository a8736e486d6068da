"""GPU memory and page-locked host memory: allocations, rings of staging slots, and the activation arena."""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 256
"""Bytes; TensorRT requires it of the activation arena, and it suffices for every tensor."""


def aligned(nbytes: int) -> int:
    """Round up to a multiple of the alignment, at least one."""
    return max(1, -(-nbytes // ALIGNMENT)) * ALIGNMENT


class MemoryDevice(Protocol):
    """The methods of :class:`sd2rt.engines.cuda.device.CudaDevice` that memory needs."""

    def allocate(self, nbytes: int, what: str) -> Memory: ...

    def pin(self, nbytes: int, what: str) -> PinnedMemory: ...

    def view(self, owner: Any, address: int, nbytes: int) -> Any: ...

    def free(self, buffer: Any) -> None: ...

    def event(self) -> Any: ...

    def record(self, event: Any) -> None: ...


class Memory:
    """Device memory, or a part of it; only the whole allocation is freed."""

    __slots__ = ("address", "buffer", "device", "nbytes")

    def __init__(self, device: MemoryDevice, buffer: Any, nbytes: int) -> None:
        self.device, self.buffer, self.nbytes = device, buffer, nbytes
        self.address = int(buffer.handle)

    def piece(self, offset: int, nbytes: int) -> Any:
        """A range of the memory as a ``cuda.core`` buffer."""
        if offset < 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"{nbytes} bytes at offset {offset} exceed the memory's {self.nbytes}")
        if nbytes == self.nbytes:
            return self.buffer
        return self.device.view(self.buffer, self.address + offset, nbytes)

    def part(self, offset: int, nbytes: int) -> Memory:
        """A range of the memory as Memory."""
        return Memory(self.device, self.piece(offset, nbytes), nbytes)

    def free(self) -> None:
        """Free the memory in stream order."""
        self.device.free(self.buffer)


class PinnedMemory(Memory):
    """Page-locked host memory; ``array`` is a view of it and must not outlive it."""

    __slots__ = ("array",)

    def __init__(self, device: MemoryDevice, buffer: Any, nbytes: int) -> None:
        super().__init__(device, buffer, nbytes)
        self.array: NDArray[np.uint8] = np.ctypeslib.as_array(
            (ctypes.c_uint8 * nbytes).from_address(self.address)
        )


class Slot:
    """Page-locked staging memory for one copy, with an event that marks the copy's end."""

    __slots__ = ("_device", "_event", "_in_flight", "array", "buffer")

    def __init__(self, device: MemoryDevice, memory: PinnedMemory, offset: int, nbytes: int) -> None:
        self._device = device
        self.buffer = memory.piece(offset, nbytes)
        self.array = memory.array[offset : offset + nbytes]
        self._event = device.event()
        self._in_flight = False

    def piece(self, nbytes: int) -> Any:
        """The first ``nbytes`` of the slot as a ``cuda.core`` buffer."""
        if nbytes == len(self.array):
            return self.buffer
        return self._device.view(self.buffer, int(self.buffer.handle), nbytes)

    def sent(self) -> None:
        """Mark the slot as in use by the copies enqueued so far."""
        self._device.record(self._event)
        self._in_flight = True

    @property
    def done(self) -> bool:
        """True if the device has finished the slot's copies; does not wait."""
        if self._in_flight and self._event.is_done:
            self._in_flight = False
        return not self._in_flight

    def wait(self) -> None:
        """Wait for the slot's copies."""
        if not self.done:
            self._event.sync()
            self._in_flight = False


class Ring:
    """Page-locked slots used in turn, so that the host can run ahead of the device by as many copies.

    Args:
        nbytes: size of one slot.
        slots: number of slots.
        what: names the ring in an out-of-memory error.
    """

    def __init__(self, device: MemoryDevice, nbytes: int, slots: int, what: str) -> None:
        stride = aligned(nbytes)
        self._memory = device.pin(stride * slots, what)
        self._slots = [Slot(device, self._memory, index * stride, nbytes) for index in range(slots)]
        self._next = 0

    def __len__(self) -> int:
        return len(self._slots)

    def next(self) -> Slot:
        """Return the oldest slot, after waiting for its copies if necessary."""
        slot = self._slots[self._next]
        slot.wait()
        self._next = (self._next + 1) % len(self._slots)
        return slot

    def free(self) -> None:
        """Free the memory after all copies have finished."""
        for slot in self._slots:
            slot.wait()
        self._memory.free()


class Arena:
    """Activation memory that all sessions of a device share, as they run one after another on one stream.

    The arena grows on demand. ``generation`` changes when it moves: sessions compare it to find out that an address
    they bound, or captured in a graph, is stale.
    """

    def __init__(self, device: MemoryDevice) -> None:
        self._device = device
        self._memory: Memory | None = None
        self.generation = 0

    def reserve(self, nbytes: int, what: str) -> Memory:
        """Return at least ``nbytes`` of memory.

        Raises:
            EngineError: the device is out of memory; the arena is then empty until the next call.
        """
        if self._memory is None or self._memory.nbytes < nbytes:
            # Free the old memory first: both together may not fit.
            self.free()
            self._memory = self._device.allocate(aligned(nbytes), f"{what}: activations")
        return self._memory

    def free(self) -> None:
        """Free the memory."""
        if self._memory is not None:
            memory, self._memory = self._memory, None
            self.generation += 1
            memory.free()
