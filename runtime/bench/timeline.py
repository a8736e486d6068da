"""Record the start and end of nested operations in one thread."""

from __future__ import annotations

import time
from types import TracebackType
from typing import NamedTuple, Protocol, Self


class Span(NamedTuple):
    """A recorded operation. Times are from ``time.perf_counter_ns``."""

    name: str
    detail: str
    """Part of the bundle, or empty."""
    start: int
    end: int

    @property
    def nanoseconds(self) -> int:
        return self.end - self.start


class Ranges(Protocol):
    """Marks ranges for an external profiler; implemented by the package ``nvtx``."""

    def push_range(self, message: str) -> object: ...

    def pop_range(self) -> object: ...


class Timeline:
    """Records spans in the order in which they end.

    Args:
        ranges: also marks every span for an external profiler.
    """

    def __init__(self, ranges: Ranges | None = None) -> None:
        self.ranges = ranges
        self._recorded: list[tuple[str, str, int, int]] = []
        self.add = self._recorded.append
        """Record a finished span, as a tuple with the fields of :class:`Span`. Cheap enough for every step."""

    def span(self, name: str, detail: str = "") -> Recording:
        """Return a context manager that records a span, even if an error is raised in it."""
        return Recording(self, name, detail)

    def take(self) -> list[Span]:
        """Return and clear the spans recorded since the last call."""
        spans = [Span(*recorded) for recorded in self._recorded]
        self._recorded.clear()
        return spans


class Recording:
    """Context manager of a span in progress."""

    __slots__ = ("_detail", "_name", "_ranges", "_start", "_timeline")

    def __init__(self, timeline: Timeline, name: str, detail: str) -> None:
        self._timeline, self._ranges = timeline, timeline.ranges
        self._name, self._detail = name, detail

    def __enter__(self) -> Self:
        if self._ranges is not None:
            self._ranges.push_range(f"{self._name} {self._detail}".strip())
        self._start = time.perf_counter_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timeline.add((self._name, self._detail, self._start, time.perf_counter_ns()))
        if self._ranges is not None:
            self._ranges.pop_range()
