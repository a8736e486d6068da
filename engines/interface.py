"""The interface of every backend: engines that are opened once, and sessions with buffers of fixed shapes."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.bundle.schema import Part

Array = NDArray[Any]
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
SessionT = TypeVar("SessionT")

NO_CARRY: Mapping[str, str] = MappingProxyType({})
"""The ``carry`` of a session that feeds no output back to an input."""


class Buffer(Protocol):
    """Tensor of a session, in memory that the engine reads or writes directly."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def host(self) -> Array:
        """The buffer's array on the host, sent to the device by :meth:`push` and filled by :meth:`pull`.

        On the CPU it is the buffer itself. The array of a carried buffer changes with every launch.
        """

    def push(self, rows: slice | None = None) -> None:
        """Copy :attr:`host` to the device; may return as soon as the copy is enqueued.

        If ``rows`` is given, only these consecutive entries of the first axis are copied. Host changes that are not
        pushed may still be sent by the next push of another buffer.
        """

    def pull(self) -> Array:
        """Copy the buffer from the device to :attr:`host` and return that array, not a copy: do not keep it."""

    def write(self, array: Array) -> None:
        """Copy ``array`` to the buffer.

        Raises:
            ValueError: its shape is not the buffer's.
        """

    def read(self) -> Array:
        """Return a copy of the buffer on the host."""

    def take(self, source: Buffer, rows: Sequence[tuple[int, int]]) -> None:
        """Copy entries of the first axis on the device, from ``source[i]`` to index ``j`` of this buffer for each
        pair ``(i, j)`` in ``rows``.

        ``source`` may be this buffer: its entries are read before any is overwritten. :attr:`host` is undefined
        until the next :meth:`pull`.
        """


def copy_whole(array: Array, host: Array) -> None:
    """Copy an array to a buffer's host array; implements :meth:`Buffer.write`.

    Raises:
        ValueError: the shapes differ. NumPy would broadcast a smaller array silently.
    """
    if array.shape != host.shape:
        raise ValueError(
            f"an array of shape {list(array.shape)} was written to a buffer of shape {list(host.shape)}"
        )
    np.copyto(host, array)


class Session(Protocol):
    """An engine bound to fixed shapes, with buffers that are allocated once.

    If the session was created with a ``carry`` from an output to an input, :meth:`launch` makes that output the
    input of the next launch, without a copy if the backend can avoid one.
    """

    @property
    def buffers(self) -> Mapping[str, Buffer]: ...

    def launch(self) -> None:
        """Run once on the contents of the input buffers; may return as soon as the run is enqueued.

        Raises:
            EngineError: the device reported an error, or ran out of memory.
        """

    def watched(self, *, wait: bool) -> list[Array]:
        """Return copies of the watched output of each launch not returned yet, in launch order.

        With ``wait``, covers all launches; otherwise only those that the device has finished.

        Raises:
            EngineError: the device reported an error.
        """


MAX_SESSIONS = 16


class Sessions(Generic[SessionT]):
    """LRU cache of an engine's sessions, keyed by sizes, carry and watched output; holds 16 beside those kept.

    Args:
        on_evict: called with each session that leaves the cache.
    """

    def __init__(self, on_evict: Callable[[SessionT], None] = lambda session: None) -> None:
        self._sessions: OrderedDict[tuple[object, ...], SessionT] = OrderedDict()
        self._kept: dict[tuple[object, ...], SessionT] = {}
        self._on_evict = on_evict

    def get(
        self,
        make: Callable[[Mapping[str, int], Mapping[str, str], str | None], SessionT],
        dims: Mapping[str, int],
        carry: Mapping[str, str],
        watch: str | None,
    ) -> SessionT:
        """Return the session for these arguments, created by ``make`` if it is not cached."""
        key = (tuple(sorted(dims.items())), tuple(sorted(carry.items())), watch)
        if (kept := self._kept.get(key)) is not None:
            return kept
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = make(dims, carry, watch)
            if len(self._sessions) > MAX_SESSIONS:
                self._on_evict(self._sessions.popitem(last=False)[1])
        self._sessions.move_to_end(key)
        return session

    def keep(self) -> None:
        """Keep the sessions that the cache holds until it is cleared."""
        self._kept |= self._sessions
        self._sessions.clear()

    def clear(self) -> None:
        """Evict all sessions."""
        self._sessions.update(self._kept)
        self._kept.clear()
        while self._sessions:
            self._on_evict(self._sessions.popitem(last=False)[1])


class Closing(ABC):
    """Mixin for context managers that call :meth:`close` on exit."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Engine(Protocol):
    """A part, loaded onto a device by a backend; a context manager that owns the loaded resources."""

    part: Part

    def session(
        self, dims: Mapping[str, int], carry: Mapping[str, str] = ..., watch: str | None = ...
    ) -> Session:
        """Return the session for these sizes of the part's symbols; equal arguments return the same session.

        ``watch`` names a small output that :meth:`Session.watched` returns for every launch.
        """

    def takes(self, dims: Mapping[str, int]) -> bool:
        """Return whether the engine runs these sizes."""

    def keep_sessions(self) -> None:
        """Keep the sessions that exist for as long as the engine is open, whatever others are created."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Backend(Protocol):
    """Opens the parts of one bundle on one device."""

    name: str
    precision: str
    """Precision of the engines' matrix products: ``fp32``, ``fp16`` or ``bf16``."""

    @property
    def max_batch(self) -> int | None:
        """Maximum number of images in a denoiser call; None for no limit."""

    def open(
        self, part: PartName, weights: Mapping[str, Array] | None = None, like: Engine | None = None
    ) -> Engine:
        """Open the engine of a part; ``weights``, by PyTorch name, replace the bundle's own.

        Args:
            like: the engine that this one replaces, if any; everything that it has loaded is loaded immediately.

        Raises:
            BundleError: the bundle has no such part, or no version of it that fits the device.
            BuildError: an engine with these weights cannot be compiled.
            EngineError: the part cannot be loaded on the device.
        """

    def close(self) -> None:
        """Free the resources that the engines share. Close the engines first."""


class Device:
    """Device that engines run on: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        RequestError: the text is not a device name.
    """

    __slots__ = ("index", "kind")

    def __init__(self, text: str) -> None:
        from sd2rt.engines.errors import RequestError

        match = re.fullmatch(r"(cpu)|cuda(?::([0-9]+))?", text)
        if match is None:
            raise RequestError(f"{text!r} is not a device: use cpu, cuda or cuda:N")
        self.kind = "cpu" if match[1] else "cuda"
        self.index = int(match[2] or 0)

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"
