"""The contract of every backend: engines that are opened once, and sessions with buffers of fixed shapes."""

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
Kept = TypeVar("Kept")

NO_CARRY: Mapping[str, str] = MappingProxyType({})
"""The ``carry`` of a session none of whose outputs becomes an input."""


class Buffer(Protocol):
    """A tensor of a session: memory that the engine reads or writes in place."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def host(self) -> Array:
        """The buffer's array on the host: what :meth:`push` sends and :meth:`pull` fills. On the CPU it is the
        buffer itself; a buffer that is carried has another one after every launch."""

    def push(self, rows: slice | None = None) -> None:
        """Make what :attr:`host` holds the buffer's contents; it may be enqueued only.

        Of these consecutive entries along the first axis alone where ``rows`` is given. What is changed on the host
        and not pushed may be sent all the same, by the next push of another buffer.
        """

    def pull(self) -> Array:
        """Make the buffer's contents what :attr:`host` holds, and return that: no copy, so not to be kept."""

    def write(self, array: Array) -> None:
        """Copy ``array`` in; its shape must be the buffer's.

        Raises:
            ValueError: it is not.
        """

    def read(self) -> Array:
        """A copy on the host."""

    def take(self, source: Buffer, rows: Sequence[tuple[int, int]]) -> None:
        """Copy entries along the first axis, on the device: of each pair, entry ``[0]`` of ``source`` to entry
        ``[1]`` here. ``source`` may be this buffer, and is read as it was before. What :attr:`host` holds
        is not said: pull it."""


def copy_whole(array: Array, host: Array) -> None:
    """Copy an array to a buffer's on the host; for :meth:`Buffer.write`.

    Raises:
        ValueError: its shape is another one: NumPy would repeat what is too small, silently.
    """
    if array.shape != host.shape:
        raise ValueError(
            f"an array of shape {list(array.shape)} was written to a buffer of {list(host.shape)}"
        )
    np.copyto(host, array)


class Session(Protocol):
    """An engine bound to fixed shapes, its buffers allocated once.

    Where the session was made with a ``carry`` from an output to an input, that output's value is the input's
    after :meth:`launch`, without a copy where the backend can avoid one.
    """

    @property
    def buffers(self) -> Mapping[str, Buffer]: ...

    def launch(self) -> None:
        """Run once on what the input buffers hold; it may be enqueued only.

        Raises:
            EngineError: the device reported an error, or had no memory left.
        """

    def watched(self, *, wait: bool) -> list[Array]:
        """Copies of the watched output of those launches whose has not been handed out yet, in order: of all of them
        where ``wait``, else of those that the device has finished.

        Raises:
            EngineError: the device reported an error.
        """


SESSIONS_KEPT = 16


class Sessions(Generic[Kept]):
    """An engine's sessions, by what they were asked for with; the least recently used goes beyond 16.

    Args:
        let_go: hears each session that goes.
    """

    def __init__(self, let_go: Callable[[Kept], None] = lambda session: None) -> None:
        self._kept: OrderedDict[tuple[object, ...], Kept] = OrderedDict()
        self._let_go = let_go

    def get(
        self,
        make: Callable[[Mapping[str, int], Mapping[str, str], str | None], Kept],
        dims: Mapping[str, int],
        carry: Mapping[str, str],
        watch: str | None,
    ) -> Kept:
        """The session for these, made where there is none."""
        key = (tuple(sorted(dims.items())), tuple(sorted(carry.items())), watch)
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = make(dims, carry, watch)
            if len(self._kept) > SESSIONS_KEPT:
                self._let_go(self._kept.popitem(last=False)[1])
        self._kept.move_to_end(key)
        return found

    def clear(self) -> None:
        """Let go of all."""
        while self._kept:
            self._let_go(self._kept.popitem(last=False)[1])


class Closing(ABC):
    """What is closed at the end of a ``with``."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Engine(Protocol):
    """A part, loaded by a backend onto a device; a context manager that owns what it loaded."""

    part: Part

    def session(
        self, dims: Mapping[str, int], carry: Mapping[str, str] = ..., watch: str | None = ...
    ) -> Session:
        """The session for these sizes of the part's symbols; the same one when asked again.

        ``watch`` names a small output of which :meth:`Session.watched` tells every launch's.
        """

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Backend(Protocol):
    """Opens the parts of one bundle on one device."""

    name: str
    precision: str
    """Of its engines' products: ``fp32``, ``fp16`` or ``bf16``."""

    @property
    def max_batch(self) -> int | None:
        """Images of a denoiser call, at most; None where there is no such bound."""

    def open(
        self, part: PartName, weights: Mapping[str, Array] | None = None, like: Engine | None = None
    ) -> Engine:
        """The engine of a part, with these weights by PyTorch name in the place of the bundle's own.

        Args:
            like: the one whose place it takes, where there is one: what that has loaded is loaded at once.

        Raises:
            BundleError: the bundle has no such part, or nothing of it that fits.
            BuildError: an engine with these weights cannot be compiled.
            EngineError: it cannot be loaded on the device.
        """

    def close(self) -> None:
        """Free what the engines share; they are closed by then."""


class Device:
    """Where engines run: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        RequestError: the text names no device.
    """

    __slots__ = ("index", "kind")

    def __init__(self, text: str) -> None:
        from sd2rt.engines.errors import RequestError

        match = re.fullmatch(r"(cpu)|cuda(?::([0-9]+))?", text)
        if match is None:
            raise RequestError(f"{text!r} is no device: use cpu, cuda or cuda:N")
        self.kind = "cpu" if match[1] else "cuda"
        self.index = int(match[2] or 0)

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"
