"""Memory of a GPU and of the host beside it: pieces, rings of page-locked slots, and the arena."""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 256
"""Bytes. What TensorRT wants of its arena, and all that any tensor needs."""


def aligned(nbytes: int) -> int:
    """The next multiple of the alignment; at least one."""
    return max(1, -(-nbytes // ALIGNMENT)) * ALIGNMENT


class MemoryDevice(Protocol):
    """The device that memory is of; see :class:`sd2rt.engines.cuda.device.CudaDevice`."""

    def allocate(self, nbytes: int, what: str) -> Memory: ...

    def pin(self, nbytes: int, what: str) -> PinnedMemory: ...

    def view(self, owner: Any, address: int, nbytes: int) -> Any: ...

    def free(self, buffer: Any) -> None: ...

    def event(self) -> Any: ...

    def record(self, event: Any) -> None: ...


class Memory:
    """Bytes on a device, or a piece of them. What allocated them frees them."""

    __slots__ = ("address", "buffer", "device", "nbytes")

    def __init__(self, device: MemoryDevice, buffer: Any, nbytes: int) -> None:
        self.device, self.buffer, self.nbytes = device, buffer, nbytes
        self.address = int(buffer.handle)

    def piece(self, offset: int, nbytes: int) -> Any:
        """Some of its bytes, as a ``cuda.core`` buffer."""
        if offset < 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"{nbytes} bytes from {offset} are not within {self.nbytes}")
        if nbytes == self.nbytes:
            return self.buffer
        return self.device.view(self.buffer, self.address + offset, nbytes)

    def part(self, offset: int, nbytes: int) -> Memory:
        """Some of its bytes, as memory."""
        return Memory(self.device, self.piece(offset, nbytes), nbytes)

    def free(self) -> None:
        """Give it back, in the stream's order."""
        self.device.free(self.buffer)


class PinnedMemory(Memory):
    """Page-locked bytes of the host; ``array`` is a view that must not outlive them."""

    __slots__ = ("array",)

    def __init__(self, device: MemoryDevice, buffer: Any, nbytes: int) -> None:
        super().__init__(device, buffer, nbytes)
        self.array: NDArray[np.uint8] = np.ctypeslib.as_array(
            (ctypes.c_uint8 * nbytes).from_address(self.address)
        )


class Slot:
    """A piece of page-locked memory, and the event that says when the device is done with it."""

    __slots__ = ("_device", "_event", "_flying", "array", "buffer")

    def __init__(self, device: MemoryDevice, memory: PinnedMemory, offset: int, nbytes: int) -> None:
        self._device = device
        self.buffer = memory.piece(offset, nbytes)
        self.array = memory.array[offset : offset + nbytes]
        self._event = device.event()
        self._flying = False

    def piece(self, nbytes: int) -> Any:
        """Its first bytes, as a ``cuda.core`` buffer."""
        if nbytes == len(self.array):
            return self.buffer
        return self._device.view(self.buffer, int(self.buffer.handle), nbytes)

    def sent(self) -> None:
        """The copies from or to it have been enqueued."""
        self._device.record(self._event)
        self._flying = True

    @property
    def done(self) -> bool:
        """Whether the device is done with it; does not wait."""
        if self._flying and self._event.is_done:
            self._flying = False
        return not self._flying

    def wait(self) -> None:
        """Wait until it is."""
        if not self.done:
            self._event.sync()
            self._flying = False


class Ring:
    """Page-locked slots that take turns, so that the host can be ahead of the device by as many copies.

    Args:
        nbytes: of one slot.
        slots: how many.
        what: names them where there is no memory for them.
    """

    def __init__(self, device: MemoryDevice, nbytes: int, slots: int, what: str) -> None:
        stride = aligned(nbytes)
        self._memory = device.pin(stride * slots, what)
        self._slots = [Slot(device, self._memory, index * stride, nbytes) for index in range(slots)]
        self._next = 0

    def __len__(self) -> int:
        return len(self._slots)

    def next(self) -> Slot:
        """The slot whose turn it is. Waits where the device is not done with it, as it then is with none."""
        slot = self._slots[self._next]
        slot.wait()
        self._next = (self._next + 1) % len(self._slots)
        return slot

    def free(self) -> None:
        """Give the memory back; waits for the copies."""
        for slot in self._slots:
            slot.wait()
        self._memory.free()


class Arena:
    """Memory for activations, which all sessions of a device share: they run one after another on one stream.

    It grows with the sessions. ``generation`` counts its moves: who has been told an address, or has captured it
    in a graph, compares.
    """

    def __init__(self, device: MemoryDevice) -> None:
        self._device = device
        self._memory: Memory | None = None
        self.generation = 0

    def reserve(self, nbytes: int, what: str) -> Memory:
        """At least so many bytes.

        Raises:
            EngineError: the device has no more; the arena is then empty until the next call.
        """
        if self._memory is None or self._memory.nbytes < nbytes:
            # The old one first: the two together are what may not fit.
            self.free()
            self._memory = self._device.allocate(aligned(nbytes), f"{what}: activations")
        return self._memory

    def free(self) -> None:
        """Give the memory back."""
        if self._memory is not None:
            memory, self._memory = self._memory, None
            self.generation += 1
            memory.free()
