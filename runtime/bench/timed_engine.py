"""Engine wrapper that records launches and waits, for any backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter_ns
from types import MappingProxyType
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from sd2rt.engines.bundle.model_kinds import PartName
from sd2rt.engines.interface import NO_CARRY, Array, Buffer, Closing, Engine, Session
from sd2rt.runtime.bench.timeline import Timeline

LAUNCH, WAIT = "launch", "wait"


class TimedEngine(Closing):
    """An :class:`~sd2rt.engines.interface.Engine` whose sessions record ``launch`` and ``wait``."""

    def __init__(self, engine: Engine, name: PartName, timeline: Timeline) -> None:
        self.inner, self.part = engine, engine.part
        self._name, self._timeline = name, timeline
        # Weak references: the engine evicts sessions, and this must not keep them alive.
        self._sessions: WeakValueDictionary[int, TimedSession] = WeakValueDictionary()

    def session(
        self, dims: Mapping[str, int], carry: Mapping[str, str] = NO_CARRY, watch: str | None = None
    ) -> Session:
        inner = self.inner.session(dims, carry, watch)
        timed = self._sessions.get(id(inner))
        if timed is None:
            outputs = {tensor.name for tensor in self.part.outputs}
            timed = self._sessions[id(inner)] = TimedSession(inner, self._name, outputs, self._timeline)
        return timed

    def takes(self, dims: Mapping[str, int]) -> bool:
        return self.inner.takes(dims)

    def keep_sessions(self) -> None:
        self.inner.keep_sessions()

    def close(self) -> None:
        self.inner.close()


class TimedSession:
    """A :class:`~sd2rt.engines.interface.Session` that records its launches and waits."""

    def __init__(self, session: Session, name: PartName, outputs: set[str], timeline: Timeline) -> None:
        self._name, self._timeline, self._add = name, timeline, timeline.add
        self._launch, self._watched = session.launch, session.watched
        # A carried output has no buffer. The input that receives it stays unwrapped, because sessions copy
        # state from each other's buffers.
        self.buffers: Mapping[str, Buffer] = MappingProxyType(
            {
                key: _TimedBuffer(buffer, name, timeline) if key in outputs else buffer
                for key, buffer in session.buffers.items()
            }
        )

    def launch(self) -> None:
        if self._timeline.ranges is not None:
            with self._timeline.span(LAUNCH, self._name):
                self._launch()
            return
        # Keep this short: its overhead counts as host time of the step.
        start = perf_counter_ns()
        self._launch()
        self._add((LAUNCH, self._name, start, perf_counter_ns()))

    def watched(self, *, wait: bool) -> list[Array]:
        if not wait:
            return self._watched(wait=False)
        with self._timeline.span(WAIT, self._name):
            return self._watched(wait=True)


class _TimedBuffer:
    """An output buffer that records waits: reading it waits for the device."""

    def __init__(self, buffer: Buffer, name: PartName, timeline: Timeline) -> None:
        self._inner, self._name, self._timeline = buffer, name, timeline

    @property
    def shape(self) -> tuple[int, ...]:
        return self._inner.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._inner.dtype

    @property
    def host(self) -> Array:
        return self._inner.host

    def push(self, rows: slice | None = None) -> None:
        self._inner.push(rows)

    def pull(self) -> Array:
        with self._timeline.span(WAIT, self._name):
            return self._inner.pull()

    def write(self, array: Array) -> None:
        self._inner.write(array)

    def read(self) -> Array:
        with self._timeline.span(WAIT, self._name):
            return self._inner.read()

    def take(self, source: Buffer, rows: Sequence[tuple[int, int]]) -> None:
        self._inner.take(source, rows)
